// Entries that all ranks draw alike (compressors/codecs/randomk.h) with blocks of threads, see
// block.h and sparse_task.h. Their values ride on an exchange of slices.
#pragma once

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/select_block.h"

namespace thinwire::kernels {

// The entry of one cell.
struct DrawnEntry {
  std::uint32_t index;
  float scale;  // of its value where it is decoded
};

THINWIRE_HOST_DEVICE PhiloxStream stream_of(const SparseTask& task, const SparseLayer& layer) {
  return PhiloxStream::of({task.seed, task.step, layer.layer_id, 0, 0, 0});
}

THINWIRE_HOST_DEVICE DrawnEntry drawn_entry(const PhiloxStream& stream, const SparseLayer& layer,
                                            std::uint32_t cell) {
  const std::uint64_t n = layer.numel, k = layer.kept;
  const std::uint64_t begin = cell * n / k, end = (std::uint64_t{cell} + 1) * n / k;
  const std::array<std::uint32_t, 4> words = stream.block(cell / 4);
  const std::uint32_t pair = cell % 4 < 2    ? cell % 2 == 0 ? words[0] : words[1]
                                : cell % 2 == 0 ? words[2]
                                             : words[3];
  return {static_cast<std::uint32_t>(begin + (pair * (end - begin) >> 32)),
          layer.unbiased ? static_cast<float>(end - begin) : 1.0f};
}

// The cell of an element.
THINWIRE_HOST_DEVICE std::uint32_t cell_of(const SparseLayer& layer, std::uint32_t element) {
  return static_cast<std::uint32_t>(((std::uint64_t{element} + 1) * layer.kept - 1) / layer.numel);
}

// A run of a layer's entries.
struct EntryRun {
  std::uint32_t layer;  // index
  std::uint32_t number, begin, count;
};

THINWIRE_HOST_DEVICE EntryRun run_of(const SparseTask& task, std::uint64_t run) {
  const std::uint32_t index = last_begun(task.layers, task.count, &SparseLayer::first_run, run);
  const SparseLayer& layer = task.layers[index];
  const auto number = static_cast<std::uint32_t>(run - layer.first_run);
  const std::uint32_t begin = number * kEntryRun, left = layer.kept - begin;
  return {index, number, begin, left < kEntryRun ? left : kEntryRun};
}

// Threads work by themselves. A layer that is not finite is sent as NaN, and keeps what it owed.
template <typename Context>
THINWIRE_HOST_DEVICE void draw_run(const Context& block, const SparseTask& task,
                                   std::uint64_t number) {
  const EntryRun run = run_of(task, number);
  const SparseLayer& layer = task.layers[run.layer];
  const PhiloxStream stream = stream_of(task, layer);
  const bool finite = task.states[run.layer].finite != 0;
  for (std::uint32_t j = run.begin + block.thread(); j < run.begin + run.count; j += block.size()) {
    const DrawnEntry entry = drawn_entry(stream, layer, j);
    float* const at = task.lost + layer.value + entry.index;
    const float value = *at;
    task.chosen[layer.first_entry + j] = finite ? value : float_of(kFloatNanBits);
    const float lost = value - value * entry.scale;
    *at = lost;
    // As in pack_run().
    if (layer.has_momentum && lost != value) layer.new_velocity[entry.index] = 0;
  }
}

// Notes means that the codec might scale beyond what is finite.
template <typename Context>
THINWIRE_HOST_DEVICE void limit_run(Context& block, const SparseTask& task, std::uint64_t number) {
  const EntryRun run = run_of(task, number);
  const SparseLayer& layer = task.layers[run.layer];
  const float most = 0x1.FFFFFEp127f / static_cast<float>(std::uint64_t{layer.numel} + 1);
  for (std::uint32_t j = run.begin + block.thread(); j < run.begin + run.count; j += block.size()) {
    const float magnitude = float_of(magnitude_bits(task.chosen[layer.first_entry + j]));
    if (!(magnitude <= most)) block.add(&task.words->not_finite, 1);
  }
}

// Writes a tile's means to `mean`, which holds zeros; each element is in one cell.
template <typename Context>
THINWIRE_HOST_DEVICE void spread_drawn(const Context& block, const SparseTask& task,
                                       const SparsePlace& place, float* mean) {
  const SparseLayer& layer = task.layers[place.layer];
  const PhiloxStream stream = stream_of(task, layer);
  const std::uint32_t last = cell_of(layer, place.begin + place.elements - 1);
  for (std::uint32_t j = cell_of(layer, place.begin) + block.thread(); j <= last;
       j += block.size()) {
    const DrawnEntry entry = drawn_entry(stream, layer, j);
    if (entry.index < place.begin || entry.index - place.begin >= place.elements) continue;
    mean[entry.index - place.begin] = task.chosen[layer.first_entry + j] * entry.scale;
  }
}

}  // namespace thinwire::kernels
