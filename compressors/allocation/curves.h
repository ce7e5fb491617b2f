// The rate-distortion curve of a layer: what each candidate codec would send and lose.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/allocator.h"
#include "thinwire/compressors/allocation/policy.h"

namespace thinwire::lgreco {

// Specs that compete for one layer of `shape`, "identity" first, then by codec in order of rising
// bytes, each once:
//   quantize  2 … 8 bits
//   topk      21 densities in geometric steps from a tenth to ten times the reference, at most 1
//   ternary   in a mixed family, the same
//   powersgd  ranks from a quarter to four times the reference (all, or about 32 in geometric
//   steps)
//             that make the layer smaller. The layer is a matrix of shape[0] rows.
// The reference's other parameters (bucket, norm, ...) are kept. The other codecs of a mixed family
// take their defaults, but topk stores bf16 values and ternary's densities lie around 0.03.
struct CandidateSet {
  std::vector<Spec> specs;
  // The uniform setting; 0 (identity) where that sends the layer as it is, as powersgd a vector.
  std::size_t reference = 0;
};
CandidateSet candidate_set(const Policy& policy, std::span<const std::int64_t> shape);

// Bytes of a layer's payload: powersgd's two factors in every iteration, for topk and
// ternary what entries spread at random take (index_coder.h), else the codec's
// max_compressed_bytes(), which most codecs write exactly. Whole. Thread-safe.
double payload_bytes(const Spec& spec, std::span<const std::int64_t> shape);

// Numbers that depend on how a codec is used; both must be thread-safe if curves are.
struct CurveCosts {
  // Bytes that one rank sends for the layer. Empty: payload_bytes().
  std::function<double(const Spec& spec, std::span<const std::int64_t> shape)> bytes;
  // Seconds to encode, send and decode. Empty: 0.
  std::function<double(const Spec& spec, std::span<const std::int64_t> shape)> seconds;
};

// What a gradient loses with each candidate: all that a curve needs of the gradient itself.
struct CurveMeasurement {
  double squared_norm = 0;
  std::vector<double> squared_errors;  // in the order of candidate_set().specs
};

// Measures a gradient (float32, row-major, of the given shape), from one pass for each codec.
// Errors are exact for quantize (and any codec that decodes locally), topk and ternary; for
// powersgd they are those of the best approximation, which its iteration approaches, see
// low_rank_energy.h. Throws InvalidArgument for a shape that does not fit or a gradient with NaN or
// infinity; `name` is for the message. Thread-safe.
CurveMeasurement measure_curve(const std::string& name, std::span<const float> gradient,
                               std::span<const std::int64_t> shape, const Policy& policy);

// The layer as the allocator wants it. Candidates that lose as much as sending nothing, or that
// send as much as identity, are left out, the reference excepted. A gradient of zeros tells
// nothing about the layer: its only candidate is the reference. Thread-safe.
Layer curve_of(const std::string& name, std::span<const std::int64_t> shape, const Policy& policy,
               const CurveMeasurement& measurement, const CurveCosts& costs = {});

// curve_of() of measure_curve().
Layer rate_distortion_curve(const std::string& name, std::span<const float> gradient,
                            std::span<const std::int64_t> shape, const Policy& policy,
                            const CurveCosts& costs = {});

// A layer that stays as it is: its only candidate is identity.
Layer uncompressed_layer(const std::string& name, std::span<const std::int64_t> shape,
                         const CurveCosts& costs = {});

}  // namespace thinwire::lgreco
