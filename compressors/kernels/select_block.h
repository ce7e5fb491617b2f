// Choosing the entries of largest magnitude (topk.h) with blocks of threads, see block.h and
// sparse_task.h: three histograms of the bits of the magnitudes find the k-th of them, then the
// entries are gathered in the order of their indices. Of equal magnitudes the lower indices are
// taken, as on the CPU. The context also has
//
//   void add(std::uint32_t* counter, std::uint32_t n)   in shared or global memory, at once
#pragma once

#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/piece_block.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire::kernels {

struct SelectShared {
  std::uint32_t bins[kSelectBins];
  std::uint32_t sums[kMaxBlockThreads];
};

// The elements of one tile.
struct SparsePlace {
  std::uint32_t layer;  // index
  std::uint32_t begin, elements;
};

THINWIRE_HOST_DEVICE SparsePlace place_of(const SparseTask& task, std::uint64_t tile) {
  const std::uint32_t index = last_begun(task.layers, task.count, &SparseLayer::first_tile, tile);
  const SparseLayer& layer = task.layers[index];
  const auto begin = static_cast<std::uint32_t>((tile - layer.first_tile) * kSparseTile);
  const std::uint32_t left = layer.numel - begin;
  return {index, begin, left < kSparseTile ? left : kSparseTile};
}

THINWIRE_HOST_DEVICE std::uint32_t magnitude_bits(float x) {
  return bits_of(x) & 0x7FFFFFFFu;
}
THINWIRE_HOST_DEVICE std::uint32_t shift_of_pass(std::uint32_t pass) {
  return pass == 0 ? 20 : pass == 1 ? 9 : 0;
}
THINWIRE_HOST_DEVICE std::uint32_t bin_of(std::uint32_t magnitude, std::uint32_t pass) {
  return magnitude >> shift_of_pass(pass) & (pass == 2 ? 511u : 2047u);
}
// Whether the bits above those of the pass are those of the k-th magnitude.
THINWIRE_HOST_DEVICE bool belongs(std::uint32_t magnitude, std::uint32_t pass, std::uint32_t kth) {
  if (pass == 0) return true;
  const std::uint32_t shift = shift_of_pass(pass - 1);
  return magnitude >> shift == kth >> shift;
}

// What all threads before this one have. What all of them have is then the last of `sums`; who
// reads that has to sync before the next scan.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint32_t scan(Context& block, std::uint32_t* sums, std::uint32_t mine) {
  const std::uint32_t thread = block.thread(), size = block.size();
  std::uint32_t sum = mine;
  sums[thread] = sum;
  block.sync();
  for (std::uint32_t distance = 1; distance < size; distance *= 2) {
    const std::uint32_t more = thread >= distance ? sums[thread - distance] : 0;
    block.sync();
    sum += more;
    sums[thread] = sum;
    block.sync();
  }
  return sum - mine;
}

// Adds the counts of a block to those of the layer.
template <typename Context>
THINWIRE_HOST_DEVICE void add_bins(Context& block, SelectShared& shared, std::uint32_t* bins) {
  block.sync();
  for (std::uint32_t b = block.thread(); b < kSelectBins; b += block.size()) {
    if (shared.bins[b] != 0) block.add(bins + b, shared.bins[b]);
  }
}
template <typename Context>
THINWIRE_HOST_DEVICE void clear_bins(Context& block, SelectShared& shared) {
  for (std::uint32_t b = block.thread(); b < kSelectBins; b += block.size()) shared.bins[b] = 0;
  block.sync();
}

// The corrected gradient, as MomentumCorrection::correct(), Residuals::correct() and add_carried()
// make it one after the other.
template <DType kType>
THINWIRE_HOST_DEVICE float corrected(const SparseTask& task, const SparseLayer& layer,
                                     std::uint32_t i) {
  float value = load_element<kType>(task.values, layer.value + i);
  if (layer.has_momentum) {
    const float velocity = layer.momentum * layer.velocity[i] + value;
    layer.new_velocity[i] = velocity;
    const float step = layer.nesterov ? layer.momentum * velocity + value : velocity;
    value = layer.residual[i] + step;
  }
  if (layer.leftover != nullptr) value = value + 1.0f * layer.leftover[i];
  if (layer.orphan != nullptr) value = value + task.ranks * layer.orphan[i];
  if (layer.residual != nullptr && !layer.has_momentum && !resets(layer, task.step)) {
    value = value + layer.decay * layer.residual[i];
  }
  return value;
}

template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void correct_tile(Context& block, SelectShared& shared, const SparseTask& task,
                                       std::uint64_t tile) {
  const SparsePlace place = place_of(task, tile);
  const SparseLayer& layer = task.layers[place.layer];
  clear_bins(block, shared);
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    const float value = corrected<kType>(task, layer, place.begin + i);
    task.lost[layer.value + place.begin + i] = value;
    block.add(&shared.bins[bin_of(magnitude_bits(value), 0)], 1);
  }
  add_bins(block, shared, task.bins + std::uint64_t{place.layer} * kSelectBins);
}

template <typename Context>
THINWIRE_HOST_DEVICE void count_tile(Context& block, SelectShared& shared, const SparseTask& task,
                                     std::uint64_t tile) {
  const SparsePlace place = place_of(task, tile);
  const float* const x = task.lost + task.layers[place.layer].value + place.begin;
  const std::uint32_t kth = task.states[place.layer].kth;
  clear_bins(block, shared);
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    const std::uint32_t magnitude = magnitude_bits(x[i]);
    if (belongs(magnitude, task.pass, kth))
      block.add(&shared.bins[bin_of(magnitude, task.pass)], 1);
  }
  add_bins(block, shared, task.bins + std::uint64_t{place.layer} * kSelectBins);
}

// Finds the bin of the k-th magnitude, and clears all bins.
template <typename Context>
THINWIRE_HOST_DEVICE void pick_bin(Context& block, SelectShared& shared, const SparseTask& task,
                                   std::uint32_t layer) {
  std::uint32_t* const bins = task.bins + std::uint64_t{layer} * kSelectBins;
  SelectState& state = task.states[layer];
  const std::uint32_t known = task.pass == 0 ? 0 : state.kth;
  const std::uint32_t wanted = task.pass == 0 ? task.layers[layer].kept : state.left;
  // Runs of bins, the highest magnitudes first.
  const std::uint32_t each = kSelectBins / block.size();
  const std::uint32_t last = kSelectBins - 1 - each * block.thread();
  std::uint32_t mine = 0;
  for (std::uint32_t b = 0; b < each; ++b) mine += bins[last - b];
  const std::uint32_t before = scan(block, shared.sums, mine);
  if (block.thread() == 0 && task.pass == 0) {
    // Magnitudes from here on are not finite.
    std::uint32_t others = 0;
    for (std::uint32_t b = kFloatInfinityBits >> 20; b < kSelectBins; ++b) others += bins[b];
    state.finite = others == 0 ? 1 : 0;
  }
  if (before < wanted && wanted <= before + mine) {
    std::uint32_t bin = last, above = before;
    while (above + bins[bin] < wanted) above += bins[bin--];
    state.kth = known | bin << shift_of_pass(task.pass);
    state.left = wanted - above;
  }
  block.sync();
  for (std::uint32_t b = block.thread(); b < kSelectBins; b += block.size()) bins[b] = 0;
}

// Elements of a run of a tile, one run a thread: above the k-th magnitude, and equal to it.
struct TileTally {
  std::uint32_t above, equal;
};
template <typename Context>
THINWIRE_HOST_DEVICE TileTally tally_of(const Context& block, const float* x,
                                        std::uint32_t elements, std::uint32_t kth) {
  const std::uint32_t each = kSparseTile / block.size();
  TileTally tally{0, 0};
  for (std::uint32_t i = each * block.thread(); i < each * (block.thread() + 1) && i < elements;
       ++i) {
    const std::uint32_t magnitude = magnitude_bits(x[i]);
    tally.above += magnitude > kth ? 1 : 0;
    tally.equal += magnitude == kth ? 1 : 0;
  }
  return tally;
}

template <typename Context>
THINWIRE_HOST_DEVICE void tally_tile(Context& block, SelectShared& shared, const SparseTask& task,
                                     std::uint64_t tile) {
  const SparsePlace place = place_of(task, tile);
  const float* const x = task.lost + task.layers[place.layer].value + place.begin;
  const TileTally mine = tally_of(block, x, place.elements, task.states[place.layer].kth);
  // The last thread knows the totals.
  const std::uint32_t above = mine.above + scan(block, shared.sums, mine.above);
  const std::uint32_t equal = mine.equal + scan(block, shared.sums, mine.equal);
  if (block.thread() + 1 != block.size()) return;
  task.tally[2 * tile] = above;
  task.tally[2 * tile + 1] = equal;
}

// Makes of the tallies of a layer's tiles what lies before each.
template <typename Context>
THINWIRE_HOST_DEVICE void sum_tallies(Context& block, SelectShared& shared, const SparseTask& task,
                                      std::uint32_t layer) {
  const std::uint64_t first = task.layers[layer].first_tile;
  const std::uint32_t tiles = (task.layers[layer].numel + kSparseTile - 1) / kSparseTile;
  for (std::uint32_t which = 0; which < 2; ++which) {
    std::uint32_t before = 0;
    for (std::uint32_t base = 0; base < tiles; base += block.size()) {
      const std::uint32_t tile = base + block.thread();
      std::uint32_t* const at = task.tally + 2 * (first + tile) + which;
      const std::uint32_t sum = scan(block, shared.sums, tile < tiles ? *at : 0);
      if (tile < tiles) *at = before + sum;
      before += shared.sums[block.size() - 1];
      block.sync();
    }
  }
}

// Writes the entries of a tile: of those of the k-th magnitude the first `left` of the layer.
template <typename Context>
THINWIRE_HOST_DEVICE void gather_tile(Context& block, SelectShared& shared, const SparseTask& task,
                                      std::uint64_t tile) {
  const SparsePlace place = place_of(task, tile);
  const SparseLayer& layer = task.layers[place.layer];
  const float* const x = task.lost + layer.value + place.begin;
  const SelectState state = task.states[place.layer];
  const TileTally mine = tally_of(block, x, place.elements, state.kth);
  std::uint32_t above = task.tally[2 * tile] + scan(block, shared.sums, mine.above);
  std::uint32_t equal = task.tally[2 * tile + 1] + scan(block, shared.sums, mine.equal);
  const std::uint32_t each = kSparseTile / block.size();
  for (std::uint32_t i = each * block.thread();
       i < each * (block.thread() + 1) && i < place.elements; ++i) {
    const float value = x[i];
    const std::uint32_t magnitude = magnitude_bits(value);
    const bool is_kth = magnitude == state.kth;
    if (magnitude > state.kth || (is_kth && equal < state.left)) {
      const std::uint64_t at =
          layer.first_entry + above + (equal < state.left ? equal : state.left);
      task.indices[at] = place.begin + i;
      task.chosen[at] = value;
    }
    above += magnitude > state.kth ? 1 : 0;
    equal += is_kth ? 1 : 0;
  }
}

}  // namespace thinwire::kernels
