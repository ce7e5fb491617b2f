// Ternary planes on tensors in GPU memory, with the arithmetic of peft::axpy(). Bodies for a block
// of threads, as block.h describes them; a thread changes an element of its own, so that no two
// meet and there is nothing to wait for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/planes_task.h"

namespace thinwire::kernels {

template <PlanesStage kStage, DType kType>
THINWIRE_HOST_DEVICE void change_element(const PlanesTask& task, const PlanesItem& item,
                                         std::uint32_t i) {
  const auto place = static_cast<std::uint64_t>(item.begin) + i;
  const std::uint64_t mask = task.mask[place / 64];
  const auto bit = static_cast<std::uint32_t>(place % 64);
  if ((mask >> bit & 1) == 0) return;
  const std::uint64_t lower = mask & ((std::uint64_t{1} << bit) - 1);
  const std::uint32_t slot = task.before[place / 64] + bits_set(static_cast<std::uint32_t>(lower)) +
                             bits_set(static_cast<std::uint32_t>(lower >> 32)) - item.kept_before;
  using Bits = std::conditional_t<kType == DType::kFloat32, std::uint32_t, std::uint16_t>;
  Bits* const target = static_cast<Bits*>(item.target);
  Bits* const kept = static_cast<Bits*>(item.kept);
  if constexpr (kStage == PlanesStage::kTakeOff) {
    target[i] = kept[slot];
  } else {
    kept[slot] = target[i];
    const bool negative = (task.sign[place / 64] >> bit & 1) != 0;
    store_element<kType>(
        item.target, i,
        load_element<kType>(item.target, i) + (negative ? -item.scale : item.scale));
  }
}

template <PlanesStage kStage, DType kType, typename Block>
THINWIRE_HOST_DEVICE void change_elements(const Block& block, const PlanesTask& task,
                                          const PlanesItem& item, std::uint64_t tile) {
  const auto first = static_cast<std::uint32_t>((tile - item.first_tile) * kPlanesTile);
  const std::uint32_t left = item.numel - first;
  const std::uint32_t count = left < kPlanesTile ? left : kPlanesTile;
  for (std::uint32_t i = block.thread(); i < count; i += block.size()) {
    change_element<kStage, kType>(task, item, first + i);
  }
}

template <PlanesStage kStage, typename Block>
THINWIRE_HOST_DEVICE void planes_tile(const Block& block, const PlanesTask& task,
                                      std::uint64_t tile) {
  const PlanesItem& item =
      task.items[last_begun(task.items, task.count, &PlanesItem::first_tile, tile)];
  switch (item.dtype) {
    case DType::kFloat16:
      return change_elements<kStage, DType::kFloat16>(block, task, item, tile);
    case DType::kBFloat16:
      return change_elements<kStage, DType::kBFloat16>(block, task, item, tile);
    default:
      return change_elements<kStage, DType::kFloat32>(block, task, item, tile);
  }
}

}  // namespace thinwire::kernels
