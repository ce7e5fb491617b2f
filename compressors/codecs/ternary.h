// Keeps the signs of the entries of largest magnitude, and one scale: the mean magnitude of those
// kept, or alpha standard deviations of all entries. Payload, for n = numel and k =
// kept_count(density, n):
//
//   f32 scale · indices (index_coder.h) · ⌈k/8⌉ bytes of signs (1: negative)
//
// The mean is the scale of least squared error, so the codec always contracts:
// ‖x − C(x)‖² = ‖x‖² − k·scale². The other scale is ComPEFT's for one-shot files; under error
// feedback it diverges where alpha is large, see peft/select.h. A tensor with a NaN or an infinity
// has a scale that is not finite and decodes to NaN.
//
// Sattler et al., "Sparse binary compression", IJCNN 2019 (with both signs); ComPEFT,
// arXiv 2311.13171.
#pragma once

#include <optional>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

struct TernaryOptions {
  // Fraction of the entries that is kept, in (0, 1].
  double density = 0.01;
  // Standard deviations in the scale; none: the mean magnitude of the kept.
  std::optional<double> alpha;
};

// `ternary(density=0.01, scale=mean|std, alpha=1)`; alpha needs scale=std. Throws InvalidArgument
// for anything else.
TernaryOptions ternary_options(const Spec& spec);
CodecPtr make_ternary(const Spec& spec);

}  // namespace thinwire
