// powersgd with blocks of threads, see block.h and low_rank_task.h: the bits of low_rank_ref.h, for
// sums have its lanes and its order. Blocks have kMaxBlockThreads threads.
#pragma once

#include <cmath>

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/low_rank_math.h"
#include "thinwire/compressors/kernels/low_rank_task.h"
#include "thinwire/compressors/kernels/owed.h"

namespace thinwire::kernels {

// Sums over a row are kept in so many lanes, element i in lane i % 16.
inline constexpr std::uint32_t kDotLanes = 16;
static_assert(kRowsOfTile * kDotLanes == kMaxBlockThreads);

// Columns of Q for which a row is read once.
inline constexpr std::uint32_t kColumnsAtOnce = 8;

struct MultiplyShared {
  // One lane more, so that threads that add up rows read different banks.
  float lanes[kColumnsAtOnce][kRowsOfTile][kDotLanes + 1];
};

struct FactorShared {
  double lanes[2][kDotLanes];
  std::uint32_t largest[kMaxBlockThreads];
};

template <typename T>
THINWIRE_HOST_DEVICE T fold_of(const T* lanes) {
  T sums[kDotLanes];
  for (std::uint32_t j = 0; j < kDotLanes; ++j) sums[j] = lanes[j];
  for (std::uint32_t half = kDotLanes / 2; half > 0; half /= 2) {
    for (std::uint32_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

// The largest of all threads' numbers, for thread 0; all find it in shared.largest[0] after a sync.
// One has to come before it is called again.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint32_t largest_of(Context& block, FactorShared& shared,
                                              std::uint32_t mine) {
  const std::uint32_t thread = block.thread();
  shared.largest[thread] = mine;
  for (std::uint32_t half = kMaxBlockThreads / 2; half > 0; half /= 2) {
    block.sync();
    if (thread < half) {
      const std::uint32_t other = shared.largest[thread + half];
      mine = other > mine ? other : mine;
      shared.largest[thread] = mine;
    }
  }
  return mine;
}

// The bits of this thread's largest magnitude that is a number, infinity counted.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint32_t largest_magnitude(const Context& block, const float* x,
                                                     std::uint64_t count) {
  std::uint32_t largest = 0;
  for (std::uint64_t i = block.thread(); i < count; i += block.size()) {
    const std::uint32_t magnitude = bits_of(x[i]) & 0x7FFFFFFFu;
    if (magnitude <= kFloatInfinityBits && magnitude > largest) largest = magnitude;
  }
  return largest;
}

// Of one matrix, as resize_factor() makes it.
template <typename Context>
THINWIRE_HOST_DEVICE void start_factor(Context& block, FactorShared& shared,
                                       const LowRankTask& task, std::uint32_t index) {
  const LowRankLayer& layer = task.layers[index];
  const PhiloxStream stream = PhiloxStream::of({task.seed, task.step, layer.layer_id, 0, 0, 0});
  for (std::uint32_t c = 0; c < layer.rank; ++c) {
    const std::uint64_t first = c * layer.cols;
    const float* const known = layer.start + first;
    std::uint32_t mine = 0;
    for (std::uint64_t j = block.thread(); j < layer.cols; j += block.size()) {
      mine |= bits_of(known[j]) & 0x7FFFFFFFu;
    }
    largest_of(block, shared, mine);
    block.sync();
    const bool empty = shared.largest[0] == 0;
    for (std::uint64_t j = block.thread(); j < layer.cols; j += block.size()) {
      task.q[layer.q + first + j] = empty ? start_number(stream.block(first + j)) : known[j];
    }
    block.sync();
  }
}

template <DType kType>
THINWIRE_HOST_DEVICE float corrected_element(const LowRankTask& task, const LowRankLayer& layer,
                                             bool without_residual, std::uint64_t i) {
  return with_owed(layer, load_element<kType>(task.values, layer.value + i), task.ranks,
                   without_residual, i);
}

// Sixteen threads a row, each with the elements of one lane, which it corrects before.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void multiply_tile(Context& block, MultiplyShared& shared,
                                        const LowRankTask& task, std::uint64_t tile) {
  const LowRankLayer& layer =
      task.layers[last_begun(task.layers, task.count, &LowRankLayer::first_row_tile, tile)];
  const std::uint64_t number = tile - layer.first_row_tile;
  const bool without_residual = resets(layer, task.step);
  const std::uint32_t thread = block.thread();
  float* const p = task.p + layer.p;
  if (layer.rank == 0) {
    const std::uint64_t first = number * kUnfactoredTile, left = layer.cols - first;
    const std::uint64_t count = left < kUnfactoredTile ? left : kUnfactoredTile;
    for (std::uint64_t i = first + thread; i < first + count; i += block.size()) {
      p[i] = corrected_element<kType>(task, layer, without_residual, i);
    }
    return;
  }
  const std::uint32_t lane = thread % kDotLanes;
  const std::uint64_t first_row = number * kRowsOfTile, row = first_row + thread / kDotLanes;
  const std::uint64_t cols = row < layer.rows ? layer.cols : 0;
  float* const m = task.matrix + layer.value + row * layer.cols;
  for (std::uint64_t j = lane; j < cols && task.corrects; j += kDotLanes) {
    m[j] = corrected_element<kType>(task, layer, without_residual, row * cols + j);
  }
  for (std::uint32_t c = 0; c < layer.rank; c += kColumnsAtOnce) {
    const std::uint32_t left = layer.rank - c;
    const std::uint32_t columns = left < kColumnsAtOnce ? left : kColumnsAtOnce;
    const float* const q = task.q + layer.q + c * layer.cols;
    float sums[kColumnsAtOnce] = {};
    for (std::uint64_t j = lane; j < cols; j += kDotLanes) {
      const float x = m[j];
      for (std::uint32_t k = 0; k < kColumnsAtOnce; ++k) {
        if (k < columns) sums[k] += x * q[k * layer.cols + j];
      }
    }
    for (std::uint32_t k = 0; k < kColumnsAtOnce; ++k) {
      shared.lanes[k][thread / kDotLanes][lane] = sums[k];
    }
    block.sync();
    const std::uint32_t k = thread / kRowsOfTile, r = thread % kRowsOfTile;
    if (k < columns && first_row + r < layer.rows) {
      p[(c + k) * layer.rows + first_row + r] = fold_of(shared.lanes[k][r]);
    }
    block.sync();
  }
}

// `lanes`: of this product alone until the next sync but one.
template <typename Context>
THINWIRE_HOST_DEVICE double dot_of(Context& block, double* lanes, const float* a, const float* b,
                                   std::uint64_t count) {
  if (block.thread() < kDotLanes) {
    double sum = 0;
    for (std::uint64_t i = block.thread(); i < count; i += kDotLanes) {
      sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    lanes[block.thread()] = sum;
  }
  block.sync();
  return fold_of(lanes);
}

// As ref::orthogonalize(), of one matrix's P or Q.
template <typename Context>
THINWIRE_HOST_DEVICE void orthonormalize(Context& block, FactorShared& shared,
                                         const LowRankTask& task, std::uint32_t index) {
  const LowRankLayer& layer = task.layers[index];
  float* const columns = task.of_q ? task.q + layer.q : task.p + layer.p;
  const std::uint64_t count = task.of_q ? layer.cols : layer.rows;
  const std::uint32_t thread = block.thread(), size = block.size();
  for (std::uint32_t c = 0; c < layer.rank; ++c) {
    float* const column = columns + c * count;
    largest_of(block, shared, largest_magnitude(block, column, count));
    block.sync();
    const std::uint32_t largest = shared.largest[0];
    if (largest > 0 && largest < kFloatInfinityBits) {
      const int exponent = exponent_of(float_of(largest));
      for (std::uint64_t i = thread; i < count; i += size) {
        column[i] = scaled_down(column[i], exponent);
      }
    }
    block.sync();
    const double before = std::sqrt(dot_of(block, shared.lanes[1], column, column, count));
    for (std::uint32_t n = 0; n < 2 * c; ++n) {
      const float* const earlier = columns + (n < c ? n : n - c) * count;
      const auto factor =
          static_cast<float>(-dot_of(block, shared.lanes[0], column, earlier, count));
      for (std::uint64_t i = thread; i < count; i += size) column[i] += factor * earlier[i];
      block.sync();
    }
    const double length = std::sqrt(dot_of(block, shared.lanes[0], column, column, count));
    const bool dependent = length <= kDependent * before;
    const auto scale = static_cast<float>(1.0 / length);
    for (std::uint64_t i = thread; i < count; i += size) {
      column[i] = dependent ? 0.0f : column[i] * scale;
    }
  }
}

// A thread adds up one column of M with one of P, in the order of the rows. Threads work by
// themselves.
template <typename Context>
THINWIRE_HOST_DEVICE void multiply_transposed_tile(const Context& block, const LowRankTask& task,
                                                   std::uint64_t tile) {
  const LowRankLayer& layer =
      task.layers[last_begun(task.layers, task.matrices, &LowRankLayer::first_column_tile, tile)];
  const std::uint64_t j =
      (tile - layer.first_column_tile) * kColumnsOfTile + block.thread() % kColumnsOfTile;
  if (j >= layer.cols) return;
  const float* const m = task.matrix + layer.value + j;
  for (std::uint32_t c = block.thread() / kColumnsOfTile; c < layer.rank;
       c += block.size() / kColumnsOfTile) {
    const float* const p = task.p + layer.p + c * layer.rows;
    float sum = 0;
    for (std::uint64_t i = 0; i < layer.rows; ++i) sum += m[i * layer.cols] * p[i];
    const std::uint64_t at = c * layer.cols + j;
    task.q[layer.q + at] = sum;
    task.own_q[layer.q + at] = sum;
    // Nothing is owed to this exchange, and nothing lost before it is over.
    if (layer.lost_q != nullptr) layer.lost_q[at] = layer.lost_mean_q[at] = -0.0f;
  }
}

// Of one matrix, when the means of both factors have come.
template <typename Context>
THINWIRE_HOST_DEVICE void find_sent(Context& block, FactorShared& shared, const LowRankTask& task,
                                    std::uint32_t index) {
  const LowRankLayer& layer = task.layers[index];
  const std::uint64_t count = layer.rank * layer.cols;
  float* const own = task.own_q + layer.q;
  for (std::uint64_t i = block.thread(); i < count && layer.lost_q != nullptr; i += block.size()) {
    const float lost = layer.lost_q[i] + task.ranks * layer.lost_mean_q[i];
    own[i] = own[i] - lost;
  }
  const std::uint32_t p = largest_of(
      block, shared, largest_magnitude(block, task.p + layer.p, layer.rank * layer.rows));
  block.sync();
  const std::uint32_t q =
      largest_of(block, shared, largest_magnitude(block, task.q + layer.q, count));
  // No product of the factors is larger than this.
  const float bound = static_cast<float>(layer.rank) * float_of(p) * float_of(q);
  if (block.thread() == 0 && !is_finite(bound)) block.add(&task.words->not_finite, 1);
  block.sync();
}

// A thread has a column of the tile, for whose rows it reads the factors once. Threads work by
// themselves. An element whose loss is not finite keeps what it was owed.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void replace_tile(const Context& block, const LowRankTask& task,
                                       std::uint64_t tile) {
  const LowRankLayer& layer =
      task.layers[last_begun(task.layers, task.count, &LowRankLayer::first_mean_tile, tile)];
  const std::uint64_t number = tile - layer.first_mean_tile;
  const std::uint64_t across = (layer.cols + kMeanColumns - 1) / kMeanColumns;
  const std::uint64_t row = number / across * kMeanRows, first = number % across * kMeanColumns;
  const std::uint64_t end = first + kMeanColumns < layer.cols ? first + kMeanColumns : layer.cols;
  const bool keeps = layer.keeps_loss && task.words->refused == 0 && task.words->not_finite == 0;
  const float* const p = task.p + layer.p;
  for (std::uint64_t j = first + block.thread(); j < end; j += block.size()) {
    if (layer.rank == 0) {
      if (keeps) layer.residual[j] = 0;
      store_element<kType>(task.values, layer.value + j, p[j]);
      continue;
    }
    float mean[kMeanRows] = {}, own[kMeanRows] = {};
    for (std::uint32_t c = 0; c < layer.rank; ++c) {
      const std::uint64_t at = layer.q + c * layer.cols + j;
      const float of_mean = task.q[at], of_own = task.own_q[at];
      for (std::uint32_t a = 0; a < kMeanRows; ++a) {
        if (row + a >= layer.rows) continue;
        const float factor = p[c * layer.rows + row + a];
        mean[a] += factor * of_mean;
        own[a] += factor * of_own;
      }
    }
    for (std::uint32_t a = 0; a < kMeanRows; ++a) {
      if (row + a >= layer.rows) continue;
      const std::uint64_t i = (row + a) * layer.cols + j;
      const float lost = task.matrix[layer.value + i] - own[a];
      if (keeps && is_finite(lost)) layer.residual[i] = lost;
      store_element<kType>(task.values, layer.value + i, mean[a]);
    }
  }
}

// Of one matrix. Threads work by themselves.
template <typename Context>
THINWIRE_HOST_DEVICE void keep_start(const Context& block, const LowRankTask& task,
                                     std::uint32_t index) {
  if (task.words->refused != 0 || task.words->not_finite != 0) return;
  const LowRankLayer& layer = task.layers[index];
  const std::uint64_t count = layer.rank * layer.cols;
  for (std::uint64_t i = block.thread(); i < layer.start_columns * layer.cols; i += block.size()) {
    layer.start[i] = i < count ? task.q[layer.q + i] : -0.0f;
  }
}

}  // namespace thinwire::kernels
