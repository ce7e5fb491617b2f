// Taking the values of slots that were read (slot_block.h) or written (encode_block.h) to a tensor
// on a GPU: the body of its kernel, and what the passes of an exchange share with it.
#pragma once

#include "thinwire/compressors/entropy/table_math.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/compressors/kernels/sum_before.h"

namespace thinwire::entropy {

// Elements of a tile that one of kMaxBlockThreads threads has, one after another.
inline constexpr std::uint32_t kTileRun = kernels::kSlotTile / kernels::kMaxBlockThreads;

// Calls put(part, element in the part, kind, value) for this thread's elements of tile `of_slot`
// of a slot. Of kind 0 all are zero, of kind 1 NaN.
template <typename Context, typename Put>
THINWIRE_HOST_DEVICE void for_each_level(Context& block, kernels::SumShared& shared,
                                         const kernels::Slot& slot, std::uint32_t of_slot,
                                         const Put& put) {
  const std::uint32_t index =
      kernels::last_begun(slot.parts, slot.count, &kernels::SlotPart::first_tile, of_slot);
  const kernels::SlotPart& part = slot.parts[index];
  const kernels::ReadPart read = slot.read[index];
  const std::uint32_t begin =
      (of_slot - part.first_tile) * kernels::kSlotTile + kTileRun * block.thread();
  std::uint32_t count = part.numel > begin ? part.numel - begin : 0;
  if (count > kTileRun) count = kTileRun;
  if (read.kind < 2) {
    const float all = read.kind == 0 ? 0.0f : kernels::float_of(kernels::kFloatNanBits);
    for (std::uint32_t i = 0; i < count; ++i) put(part, begin + i, read.kind, all);
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
    put(part, begin + i, read.kind, magnitude > 0 && symbol % 2 == 0 ? -level : level);
  }
}

// Value =, += or −= what a slot says of it.
THINWIRE_HOST_DEVICE float applied(float value, kernels::SlotApply apply, std::uint32_t kind,
                                   float level) {
  if (apply == kernels::SlotApply::kAssign || kind == 1) return level;
  if (kind == 0) return value;
  return apply == kernels::SlotApply::kAdd ? value + level : value - level;
}

// Tile `tile` of all of the task's, by kMaxBlockThreads threads.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void apply_slot_tile(Context& block, kernels::SumShared& shared,
                                          const kernels::SlotTask& task, std::uint64_t tile) {
  const kernels::Slot& slot =
      task.slots[kernels::last_begun(task.slots, task.count, &kernels::Slot::first_tile, tile)];
  if (slot.state->fault != kernels::SlotFault::kNone) return;
  for_each_level(
      block, shared, slot, static_cast<std::uint32_t>(tile - slot.first_tile),
      [&](const kernels::SlotPart& part, std::uint32_t i, std::uint32_t kind, float level) {
        const std::uint64_t at = part.value + i;
        if constexpr (kType == DType::kFloat32) {
          float& value = static_cast<float*>(task.values)[at];
          if (task.apply == kernels::SlotApply::kAssign) {
            value = level;
          } else {
            value = applied(value, task.apply, kind, level);
          }
        } else {
          kernels::store_element<kType>(task.values, at, level);
        }
      });
}

}  // namespace thinwire::entropy
