// An exchange of slots in GPU memory, one tile at a time: the bodies of the kernels around writing
// and reading them (kernels/slot_task.h). They give the bits of
// comm/average/reduce/slot_reduce.cpp: every operation is rounded by itself, sums are in the order
// of the ranks. By kMaxBlockThreads threads, see kernels/block.h.
#pragma once

#include "thinwire/compressors/entropy/apply_block.h"
#include "thinwire/compressors/kernels/owed.h"

namespace thinwire::entropy {

// A tile of a piece, and what of it a thread has in for_each_level().
struct PassTile {
  const kernels::DevicePiece& piece;
  std::uint32_t begin, count;  // in the piece

  template <typename Context>
  THINWIRE_HOST_DEVICE static PassTile of(const Context& block, const kernels::SlotPassTask& task,
                                          std::uint64_t tile) {
    const kernels::DevicePiece& piece = task.pieces[kernels::last_begun(
        task.pieces, task.count, &kernels::DevicePiece::first_tile, tile)];
    const auto begin = static_cast<std::uint32_t>(tile - piece.first_tile) * kernels::kSlotTile +
                       kTileRun * block.thread();
    const std::uint32_t left = piece.numel > begin ? piece.numel - begin : 0;
    return {piece, begin, left < kTileRun ? left : kTileRun};
  }
};

template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void correct_tile(const Context& block, const kernels::SlotPassTask& task,
                                       std::uint64_t tile) {
  const PassTile here = PassTile::of(block, task, tile);
  const bool without_residual = kernels::resets(here.piece, task.step);
  for (std::uint32_t i = here.begin; i < here.begin + here.count; ++i) {
    const std::uint64_t at = here.piece.value + i;
    task.lost[at] = kernels::with_owed(here.piece, kernels::load_element<kType>(task.values, at),
                                       task.ranks, without_residual, std::uint64_t{i});
  }
}

// Marks the tile where no thread has met anything.
template <typename Context>
THINWIRE_HOST_DEVICE void mark_finite(Context& block, kernels::SumShared& shared, bool finite,
                                      std::uint32_t* mark) {
  const std::uint32_t before = kernels::sum_before(block, shared, finite ? 0 : 1);
  if (block.thread() + 1 == block.size()) *mark = finite && before == 0 ? 1 : 0;
}

// values −= what the slot says of its tile; whether all that this thread leaves is finite.
template <typename Context>
THINWIRE_HOST_DEVICE bool lose_levels(Context& block, kernels::SumShared& shared,
                                      const kernels::Slot& slot, std::uint64_t tile,
                                      float* values) {
  bool finite = true;
  for_each_level(
      block, shared, slot, static_cast<std::uint32_t>(tile - slot.first_tile),
      [&](const kernels::SlotPart& part, std::uint32_t i, std::uint32_t kind, float level) {
        float& value = values[part.value + i];
        const float lost = applied(value, kernels::SlotApply::kSubtract, kind, level);
        finite = finite && kernels::is_finite(lost);
        value = lost;
      });
  return finite;
}

template <typename Context>
THINWIRE_HOST_DEVICE void lose_tile(Context& block, kernels::SumShared& shared,
                                    const kernels::SlotPassTask& task, std::uint64_t tile) {
  const kernels::Slot& slot = task.slots[kernels::last_begun(task.slots, task.slot_count,
                                                             &kernels::Slot::first_tile, tile)];
  const bool finite = lose_levels(block, shared, slot, tile, task.lost);
  const kernels::DevicePiece& piece = PassTile::of(block, task, tile).piece;
  mark_finite(block, shared, finite,
              task.residual_finite + piece.first_mark + (tile - piece.first_tile));
}

template <typename Context>
THINWIRE_HOST_DEVICE void lose_mean_tile(Context& block, kernels::SumShared& shared,
                                         const kernels::SlotPassTask& task, std::uint64_t tile) {
  const bool finite = lose_levels(block, shared, task.slots[0], tile, task.sums);
  mark_finite(block, shared, finite, task.mean_finite + tile);
}

// Threads keep their elements from rank to rank. Nothing is added of a slot that was refused, and
// nobody takes the mean then.
template <typename Context>
THINWIRE_HOST_DEVICE void mean_tile(Context& block, kernels::SumShared& shared,
                                    const kernels::SlotPassTask& task, std::uint64_t tile) {
  const PassTile here = PassTile::of(block, task, tile);
  float* const sums = task.sums + here.piece.own;
  for (std::uint32_t i = here.begin; i < here.begin + here.count; ++i) sums[i] = 0;
  for (std::uint32_t r = 0; r < task.slot_count; ++r) {
    const kernels::Slot& slot = task.slots[r];
    if (slot.state->fault != kernels::SlotFault::kNone) continue;
    const auto apply = r == 0 ? kernels::SlotApply::kAssign : kernels::SlotApply::kAdd;
    for_each_level(block, shared, slot, static_cast<std::uint32_t>(tile - slot.first_tile),
                   [&](const kernels::SlotPart&, std::uint32_t i, std::uint32_t kind, float level) {
                     sums[i] = applied(sums[i], apply, kind, level);
                   });
  }
  const float decay = kernels::resets(here.piece, task.step) ? 0.0f : here.piece.decay;
  for (std::uint32_t i = here.begin; i < here.begin + here.count; ++i) {
    float mean = sums[i] / task.divisor;
    if (here.piece.second != nullptr) mean = mean + decay * here.piece.second[i];
    sums[i] = mean;
  }
}

// What was lost may lie where the mean is written.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void deliver_tile(Context& block, kernels::SumShared& shared,
                                       const kernels::SlotPassTask& task, std::uint64_t tile) {
  const kernels::Slot& slot = task.slots[kernels::last_begun(task.slots, task.slot_count,
                                                             &kernels::Slot::first_tile, tile)];
  if (slot.state->fault != kernels::SlotFault::kNone) return;
  const kernels::DevicePiece& piece = PassTile::of(block, task, tile).piece;
  const bool keeps = piece.keeps_loss && task.keep[piece.layer] != 0;
  const bool keeps_second =
      piece.second != nullptr && task.words->refused == 0 && task.words->not_finite == 0;
  const float* const sums = task.sums + piece.own;
  for_each_level(block, shared, slot, static_cast<std::uint32_t>(tile - slot.first_tile),
                 [&](const kernels::SlotPart&, std::uint32_t i, std::uint32_t, float level) {
                   const std::uint64_t at = piece.value + i;
                   if (keeps) piece.residual[i] = task.lost[at];
                   if (keeps_second) piece.second[i] = sums[i];
                   kernels::store_element<kType>(task.values, at, level);
                 });
}

// The one block of its launch.
template <typename Context>
THINWIRE_HOST_DEVICE void report_slots(const Context& block, const kernels::SlotPassTask& task) {
  constexpr std::uint32_t kWords = sizeof(kernels::MeanPrefix) / 4;
  auto* const out = reinterpret_cast<std::byte*>(task.report);
  for (std::uint32_t i = block.thread(); i < task.slot_count * kWords; i += block.size()) {
    const std::byte* prefix = task.slots[i / kWords].payload - sizeof(kernels::MeanPrefix);
    kernels::store_word(out + 4 * i, kernels::load_word(prefix + 4 * (i % kWords)));
  }
  if (block.thread() != 0) return;
  std::byte* const words = out + std::uint64_t{task.slot_count} * sizeof(kernels::MeanPrefix);
  kernels::store_word(words, task.words->refused);
  kernels::store_word(words + 4, task.words->not_finite);
}

}  // namespace thinwire::entropy
