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
#include "thinwire/compressors/kernels/slot_task.h"

namespace thinwire::comm {

// In front of the payload, see SlotReduce.
using kernels::kNoStep;
using kernels::MeanPrefix;
using kernels::SlotPrefix;

// What the prefixes of all slots say together, in the order of the slices, of which some have
// elements: the same on all ranks, in whatever order the prefixes came.
SlotReport report_of(std::span<const MeanPrefix> prefixes,
                     const std::vector<std::vector<Slice>>& slices);

// Bytes of each slot of a slice, prefix included, in an exchange of those steps; `place` is its
// number among the slots. 0 of an empty slice.
std::size_t slot_bytes_of(const Slice& slice, const SharedSteps::Use& use, std::size_t leg,
                          std::size_t place);

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
