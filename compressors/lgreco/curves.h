// The rate-distortion curve of a layer: what each candidate codec would send and lose.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/lgreco/allocator.h"
#include "thinwire/compressors/lgreco/policy.h"

namespace thinwire::lgreco {

// Specs that compete for one layer of `shape`, "identity" first, then by codec in order of rising
// bytes, each once:
//   quantize  2 … 8 bits
//   topk      21 densities in geometric steps from a tenth to ten times the reference, at most 1
//   powersgd  ranks from a quarter to four times the reference (all, or about 32 in geometric
//   steps),
//             below the layer's own rank. The layer is a matrix of shape[0] rows.
// The reference's other parameters (bucket, norm, ...) are kept; the other codecs of a mixed family
// take their defaults.
struct CandidateSet {
  std::vector<Spec> specs;
  // The uniform setting; 0 (identity) where it does not apply, as powersgd to a vector.
  std::size_t reference = 0;
};
CandidateSet candidate_set(const Policy& policy, std::span<const std::int64_t> shape);

// Numbers that depend on how a codec is used; both must be thread-safe if curves are.
struct CurveCosts {
  // Bytes that one rank sends for the layer. Empty: powersgd's two float32 factors, or the codec's
  // max_compressed_bytes().
  std::function<double(const Spec& spec, std::span<const std::int64_t> shape)> bytes;
  // Seconds to encode, send and decode. Empty: 0.
  std::function<double(const Spec& spec, std::span<const std::int64_t> shape)> seconds;
};

// Errors of all candidates on a gradient (float32, row-major, of the given shape), from one pass
// for each codec. Candidates that lose as much as sending nothing, or that send as much as
// identity, are left out, the reference excepted. Errors are exact for quantize (and any codec that
// decodes locally) and topk; for powersgd they are those of the best approximation, which its
// iteration approaches, see low_rank_energy.h. Throws InvalidArgument for a shape that does not fit
// or a gradient with NaN or infinity. Thread-safe.
Layer rate_distortion_curve(const std::string& name, std::span<const float> gradient,
                            std::span<const std::int64_t> shape, const Policy& policy,
                            const CurveCosts& costs = {});

// A layer that stays as it is: its only candidate is identity.
Layer uncompressed_layer(const std::string& name, std::span<const std::int64_t> shape,
                         const CurveCosts& costs = {});

}  // namespace thinwire::lgreco
