// Keeps the entries of largest magnitude. Payload, for n = numel and k = kept_count(density, n):
//
//   u32 number of entries · indices (index_coder.h) · one value an entry; coded:
//   all of them as levels (value_levels.h), about two bits each
//
// An empty tensor has an empty payload. Infinities and NaN count as the largest magnitudes and are
// kept first; where every kept entry is one of them there may be more than were kept, and the whole
// tensor decodes to NaN.
//
// Aji & Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017; Stich et
// al., "Sparsified SGD with memory", NeurIPS 2018.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire {

struct TopkOptions {
  // Fraction of the entries that is kept, in (0, 1].
  double density = 0.01;
  // false: exactly kept_count() entries, ties to the lower index. true: those above a threshold
  // that a random sample of the tensor suggests, between half and twice as many.
  bool sampled = false;
  ValueType values = ValueType::kFloat32;
};

// `topk(density=0.01, select=exact|sampled, values=fp32|fp16|bf16|coded)`. Throws InvalidArgument
// for anything else.
TopkOptions topk_options(const Spec& spec);
CodecPtr make_topk(const Spec& spec);
// Throws InvalidArgument for a density outside (0, 1].
CodecPtr make_topk(const TopkOptions& options);

}  // namespace thinwire
