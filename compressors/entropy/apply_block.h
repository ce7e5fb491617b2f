// Taking the values of slots that were read (slot_block.h) to a tensor on a GPU: the body of its
// kernel.
#pragma once

#include "thinwire/compressors/entropy/table_math.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sum_before.h"

namespace thinwire::entropy {

// Tile `tile` of all of the task's, by kMaxBlockThreads threads.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void apply_slot_tile(Context& block, kernels::SumShared& shared,
                                          const kernels::SlotTask& task, std::uint64_t tile) {
  constexpr std::uint32_t kRun = kernels::kSlotTile / kernels::kMaxBlockThreads;
  const kernels::Slot& slot =
      task.slots[kernels::last_begun(task.slots, task.count, &kernels::Slot::first_tile, tile)];
  if (slot.state->fault != kernels::SlotFault::kNone) return;
  const auto of_slot = static_cast<std::uint32_t>(tile - slot.first_tile);
  const std::uint32_t index =
      kernels::last_begun(slot.parts, slot.count, &kernels::SlotPart::first_tile, of_slot);
  const kernels::SlotPart& part = slot.parts[index];
  const kernels::ReadPart read = slot.read[index];
  const std::uint32_t begin =
      (of_slot - part.first_tile) * kernels::kSlotTile + kRun * block.thread();
  std::uint32_t count = part.numel > begin ? part.numel - begin : 0;
  if (count > kRun) count = kRun;
  const auto put = [&](std::uint32_t i, float level) {
    const std::uint64_t at = part.value + begin + i;
    if constexpr (kType == DType::kFloat32) {
      float& value = static_cast<float*>(task.values)[at];
      if (task.apply == kernels::SlotApply::kAdd) level = value + level;
      if (task.apply == kernels::SlotApply::kSubtract) level = value - level;
      value = level;
    } else {
      kernels::store_element<kType>(task.values, at, level);
    }
  };
  if (read.kind < 2) {
    if (read.kind == 0 && task.apply != kernels::SlotApply::kAssign) return;
    const float all = read.kind == 0 ? 0.0f : kernels::float_of(kernels::kFloatNanBits);
    for (std::uint32_t i = 0; i < count; ++i) {
      if constexpr (kType == DType::kFloat32) {
        static_cast<float*>(task.values)[part.value + begin + i] = all;
      } else {
        put(i, all);
      }
    }
    return;
  }
  const std::uint32_t bound = read.kind >= 5 ? 2 : 15;
  const std::uint8_t* symbols = slot.symbols + part.first + begin;
  std::uint32_t at_bound = 0;
  for (std::uint32_t i = 0; i < count; ++i) at_bound += symbols[i] >= 2 * bound - 1 ? 1 : 0;
  std::uint32_t next = slot.before[of_slot] + kernels::sum_before(block, shared, at_bound);
  const float step = slot.state->step;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t symbol = symbols[i];
    std::uint32_t magnitude = (symbol + 1) / 2;
    if (magnitude == bound) magnitude += slot.excess[next++];
    const std::uint32_t centroid = magnitude < 3 ? magnitude : 3;
    const auto byte = static_cast<std::uint8_t>(read.centroids << 8 >> 8 * centroid);
    const float level = magnitude == 0 ? 0 : level_of(magnitude, byte, step);
    put(i, magnitude > 0 && symbol % 2 == 0 ? -level : level);
  }
}

}  // namespace thinwire::entropy
