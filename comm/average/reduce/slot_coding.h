// What a slot of SlotReduce holds: a prefix, then the codes of a slice by the entropy coder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::comm {

// In front of the payload, see SlotReduce; both are the same on the two ways but for their number.
struct SlotPrefix {
  std::uint32_t wanted_bytes = 0;  // beyond what any payload takes
  // Roots of the squared error, and of what the goal allows; 0 for goals that are no errors.
  float lost = 0, allowed = 0;
};
// In place of the logarithm of a step where everything was zero.
inline constexpr double kNoStep = -1000;
struct MeanPrefix {
  SlotPrefix mean, slices;
  float log2_step = 0;
};
static_assert(sizeof(SlotPrefix) == 12 && sizeof(MeanPrefix) == 28);

// What the prefixes of all slots say together, in the order of the slices, of which some have
// elements: the same on all ranks, in whatever order the prefixes came.
SlotReport report_of(std::span<const MeanPrefix> prefixes,
                     const std::vector<std::vector<Slice>>& slices);

// Coders of the calling thread; their buffers serve one slice after another.
struct SlotCoders {
  entropy::StepEncoder encoder;
  entropy::StepDecoder decoder;
  entropy::StepCodes codes;
  std::vector<std::span<const float>> parts;
  std::vector<std::size_t> sizes;
  // What a goal's other codec, or the encoding itself, loses of a part.
  std::vector<float> lost;
  std::vector<std::byte> payload;
};
SlotCoders& slot_coders();

// Codes that a slot holds of a slice, in SlotCoders::codes. Throws FrameError.
const entropy::StepCodes& read_slot(std::span<const std::byte> payload, const Slice& slice);

// Whether the goal is an error, of which SlotPrefix tells.
bool aims_at_error(const EcsqOptions& options);

// Squared error that the goal allows for the parts; nothing for goals that are no errors.
double allowed_error(const EcsqOptions& options, std::span<const std::span<const float>> parts,
                     const RandomKey& key);

// Encodes SlotCoders::parts into a slot behind its prefix. Of slots that are to be full `*begin`,
// times the step, is tried first, and becomes what was used.
SlotPrefix fill_slot(const EcsqOptions& options, float step, const RandomKey& key,
                     std::span<std::byte> payload, float* begin = nullptr);

}  // namespace thinwire::comm
