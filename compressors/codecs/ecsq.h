// Entropy-coded scalar quantisation: one uniform step with a dead zone, reconstruction at the
// centroids, and an entropy coder. At given bits one step for everything has the least squared
// error, for codes of large values may take more bits than those of small ones ("reverse
// water-filling"); so the reductions use one step for all layers of a model, which follows what the
// last step took (comm/average/reduce/slot_reduce.h). Where a tensor is coded by itself its step is
// found from a sample of its magnitudes.
//
//   ecsq(bits=2.5)                    bits an element on the wire: payloads of a fixed size, see
//                                     entropy/step_coder.h, Slots
//   ecsq(step=0.001)                  a given step
//   ecsq(error=0.05)                  relative error ‖x − D(C(x))‖ / ‖x‖ of about that
//   ecsq(as=quantize(bits=4))         the squared error of another codec, at fewer bits
//
// Payload: that of entropy/step_coder.h with a part for every kEcsqPart elements. A part with a NaN
// or an infinity decodes to NaN.
//
// Gish and Pierce, "Asymptotically efficient quantizing", IEEE Trans. Inf. Theory, 1968; Sullivan,
// "Efficient scalar quantization of exponential and Laplacian random variables", 1996.
#pragma once

#include <cstdint>
#include <optional>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

namespace entropy {
struct StepChoice;
}

// The basis of spectral(...).
struct BasisOptions {
  int directions = 16;  // of a side of a matrix, 1 to 64
  int every = 10;       // steps from one basis to the next
};

struct EcsqOptions {
  enum class Goal { kBits, kStep, kError, kAs };
  Goal goal = Goal::kBits;
  double value = 2.5;  // bits, step or relative error
  CodecPtr as = {};    // for kAs
  // Of spectral(...), which is this codec in a basis where a reduction has one.
  std::optional<BasisOptions> basis = {};
  // What is added before a scaled magnitude is rounded down: 1/2 rounds to nearest, less makes more
  // of them zero, which saves more bits than it costs error at low rates.
  double rounding() const;
  // How values are coded with a step. Payloads of so many bits fill their slots.
  entropy::StepChoice choice(float step) const;
};

// Elements that share a table.
inline constexpr std::int64_t kEcsqPart = std::int64_t{1} << 18;

// `ecsq(bits=F | step=F | error=F | as=SPEC)`, one of them; bits=2.5 without any. Throws
// InvalidArgument for anything else.
CodecPtr make_ecsq(const Spec& spec);

// A codec with these options, which are in range.
CodecPtr make_step_codec(EcsqOptions options);

// The options of a codec that make_ecsq() or make_spectral() made; null for any other.
const EcsqOptions* ecsq_options(const Codec& codec);

}  // namespace thinwire
