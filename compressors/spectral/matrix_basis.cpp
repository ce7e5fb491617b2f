#include "thinwire/compressors/spectral/matrix_basis.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/thin_product.h"
#include "thinwire/compressors/spectral/level_order.h"
#include "thinwire/compressors/spectral/scratch.h"

namespace thinwire::spectral {
namespace {

// Sizes are means over the last twenty steps or so, and over fewer at first.
constexpr float kLeastWeight = 0.05f;
// How often random directions take the place of those that cannot be had from a sketch.
constexpr int kDraws = 3;

std::size_t size(std::int64_t number) {
  return static_cast<std::size_t>(number);
}

// Buffers of the calling thread, which keep their memory from call to call.
struct LearnScratch {
  std::vector<float> thin, product, row_sums, column_sums;
};
LearnScratch& learn_scratch() {
  thread_local LearnScratch instance;
  return instance;
}

// A power of two that brings values of such a mean square near one: sketches are then of the size
// of the means, not of its square. 0 where nothing can be learned of them.
float scale_of(double mean_square) {
  if (!(mean_square > 0)) return 0;
  const int exponent = std::isfinite(mean_square) ? std::ilogb(mean_square) / 2 : 64;
  return std::ldexp(1.0f, std::clamp(-exponent, -120, 120));
}

void add_sizes(std::vector<float>& sizes, const float* sums, float count, float weight) {
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const float found = std::min(sums[i] / count, std::numeric_limits<float>::max());
    sizes[i] += weight * (found - sizes[i]);
  }
}

// Orthonormal columns that span what the sketch does, k runs of n; false where there are none.
bool orthonormal(std::vector<float>& columns, std::size_t n, std::size_t k, const RandomKey& key) {
  if (!kernels::all_finite(columns)) return false;
  if (std::ranges::all_of(columns, [](float value) { return value == 0; })) return false;
  kernels::orthogonalize(columns.data(), n, k);
  for (int draw = 0; draw <= kDraws; ++draw) {
    bool whole = true;
    for (std::size_t c = 0; c < k; ++c) {
      const auto column = std::span(columns).subspan(c * n, n);
      if (std::ranges::any_of(column, [](float value) { return value != 0; })) continue;
      whole = false;
      const auto first = static_cast<std::int64_t>(size(draw) * k + c);
      init_factor(key, static_cast<std::int64_t>(n), first, 1, column);
    }
    if (whole) return kernels::all_finite(columns);
    kernels::orthogonalize(columns.data(), n, k);
  }
  return false;
}

std::vector<std::uint16_t> to_levels(std::span<const float> values) {
  std::vector<std::uint16_t> levels(values.size());
  std::ranges::transform(values, levels.begin(),
                         [](float value) { return static_cast<std::uint16_t>(value); });
  return levels;
}

}  // namespace

MatrixShape matrix_shape(std::span<const std::int64_t> shape, std::int64_t numel) {
  if (shape.size() < 2 || shape[0] < 2 || numel / shape[0] < 2) return {1, numel};
  return {shape[0], numel / shape[0]};
}

std::int64_t directions_of(const MatrixShape& shape, int most) {
  if (shape.rows == 1) return 0;
  return std::min({static_cast<std::int64_t>(most), shape.rows, shape.cols});
}

MatrixBasis::MatrixBasis(MatrixShape shape, int directions, const RandomKey& key) {
  const auto [rows, cols] = shape;
  const std::int64_t k = directions_of(shape, directions);
  state_.shape = shape;
  state_.directions = k;
  state_.row_sizes.resize(size(rows));
  state_.row_levels.assign(size(rows), static_cast<float>(level_of(1)));
  if (k > 0) {
    state_.column_sizes.resize(size(cols));
    state_.column_levels.assign(size(cols), 0.0f);
    for (auto* side : {&state_.left, &state_.right}) {
      const std::int64_t n = side == &state_.left ? rows : cols;
      side->resize(size(n * k));
      init_factor(key, n, 0, k, *side);
      const bool found = orthonormal(*side, size(n), size(k), key);
      THINWIRE_ASSERT(found);
    }
    state_.left_sketch.resize(state_.left.size());
    state_.right_sketch.resize(state_.right.size());
  } else {
    state_.column_levels.assign(1, 0.0f);
  }
  derive();
}

MatrixBasis::MatrixBasis(State state) : state_(std::move(state)) {
  const auto [rows, cols] = state_.shape;
  const std::int64_t k = state_.directions;
  const bool sound = rows > 0 && cols >= 0 && k >= 0 && k <= std::min(rows, cols) &&
                     (k > 0) == (rows > 1) && state_.steps >= 0;
  check(sound, "a saved basis has ", k, " directions for a matrix of ", rows, " x ", cols);
  const auto expect = [](const char* what, std::size_t found, std::int64_t expected) {
    check(found == size(expected), "a saved basis has ", found, " numbers in its ", what,
          ", expected ", expected);
  };
  expect("left directions", state_.left.size(), k * rows);
  expect("right directions", state_.right.size(), k * cols);
  expect("left sketch", state_.left_sketch.size(), k * rows);
  expect("right sketch", state_.right_sketch.size(), k * cols);
  expect("row sizes", state_.row_sizes.size(), rows);
  expect("column sizes", state_.column_sizes.size(), k > 0 ? cols : 0);
  expect("row levels", state_.row_levels.size(), rows);
  expect("column levels", state_.column_levels.size(), k > 0 ? cols : 1);
  for (const auto* levels : {&state_.row_levels, &state_.column_levels}) {
    check(std::ranges::all_of(*levels, [](float level) { return level >= 0 && level < 2048; }),
          "a saved basis has levels that are none");
  }
  derive();
}

// The rest from the state. Signs of its directions may change, once.
void MatrixBasis::derive() {
  if (state_.directions > 0) {
    const std::size_t k = size(state_.directions);
    left_ = BlockReflector(state_.left, size(state_.shape.rows), k);
    right_ = BlockReflector(state_.right, size(state_.shape.cols), k);
    column_levels_ = to_levels(state_.column_levels);
  } else {
    column_levels_.assign(size(state_.shape.cols),
                          static_cast<std::uint16_t>(state_.column_levels[0]));
  }
  row_levels_ = to_levels(state_.row_levels);
}

void MatrixBasis::turned(Direction direction, std::span<float> values) const {
  turn(left_, right_, direction, size(state_.shape.rows), size(state_.shape.cols), values);
}

// Returns the mean's scale.
float MatrixBasis::note_sizes(std::span<const float> mean) {
  LearnScratch& s = learn_scratch();
  const std::size_t rows = size(state_.shape.rows), cols = size(state_.shape.cols);
  float* const of_rows = room(s.row_sums, rows);
  float* const of_columns = room(s.column_sums, cols);
  kernels::sums_of_squares(mean.data(), rows, cols, of_rows, of_columns);
  const float weight = std::max(2.0f / (static_cast<float>(state_.steps) + 1), kLeastWeight);
  add_sizes(state_.row_sizes, of_rows, static_cast<float>(cols), weight);
  add_sizes(state_.column_sizes, of_columns, static_cast<float>(rows), weight);
  return scale_of(std::accumulate(of_rows, of_rows + rows, 0.0) / static_cast<double>(rows * cols));
}

void MatrixBasis::learn(std::span<const float> mean) {
  const std::size_t rows = size(state_.shape.rows), cols = size(state_.shape.cols);
  THINWIRE_ASSERT(mean.size() == rows * cols);
  ++state_.steps;
  if (mean.empty()) return;
  const float scale = note_sizes(mean);
  const std::size_t k = size(state_.directions), padded = kernels::thin_columns(k);
  if (k == 0 || scale == 0) return;
  LearnScratch& s = learn_scratch();
  // The first rows, as columns.
  float* const first_rows = room(s.thin, std::max(cols, rows) * padded);
  for (std::size_t j = 0; j < cols; ++j) {
    for (std::size_t c = 0; c < k; ++c) first_rows[j * padded + c] = mean[c * cols + j] * scale;
    for (std::size_t c = k; c < padded; ++c) first_rows[j * padded + c] = 0;
  }
  float* const product = room(s.product, std::max(cols, rows) * padded);
  kernels::thin_multiply(mean.data(), rows, cols, first_rows, padded, product);
  for (std::size_t i = 0; i < rows; ++i) {
    float* const sketch = state_.left_sketch.data() + i * k;
    for (std::size_t c = 0; c < k; ++c) sketch[c] += product[i * padded + c];
  }
  // The first columns.
  float* const first_columns = s.thin.data();
  for (std::size_t c = 0; c < k; ++c) {
    for (std::size_t i = 0; i < rows; ++i) first_columns[c * rows + i] = mean[i * cols + c] * scale;
  }
  kernels::low_rank_multiply_transposed(mean.data(), rows, cols, first_columns, k, product);
  kernels::add_scaled(state_.right_sketch.data(), product, 1, state_.right_sketch);
}

void MatrixBasis::refresh(const RandomKey& key) {
  const auto [rows, cols] = state_.shape;
  const std::size_t k = size(state_.directions);
  const auto take = [&](std::vector<float>& directions, std::vector<float> columns,
                        const BlockReflector& side, std::size_t n) {
    if (!orthonormal(columns, n, k, key)) return;
    // Out of the basis that the sketch is in: rows of k x n times the transpose of that side.
    turn({}, side, Direction::kOutOf, k, n, columns);
    if (orthonormal(columns, n, k, key)) directions = std::move(columns);
  };
  if (k > 0) {
    std::vector<float> columns(state_.left_sketch.size());
    for (std::size_t c = 0; c < k; ++c) {
      for (std::size_t i = 0; i < size(rows); ++i) {
        columns[c * size(rows) + i] = state_.left_sketch[i * k + c];
      }
    }
    take(state_.left, std::move(columns), left_, size(rows));
    take(state_.right, state_.right_sketch, right_, size(cols));
    std::ranges::fill(state_.left_sketch, 0.0f);
    std::ranges::fill(state_.right_sketch, 0.0f);
  }
  const double sum = std::accumulate(state_.row_sizes.begin(), state_.row_sizes.end(), 0.0);
  const auto mean = static_cast<float>(sum / static_cast<double>(rows));
  const bool known = mean > 0 && std::isfinite(mean);
  for (std::size_t i = 0; i < size(rows); ++i) {
    state_.row_levels[i] = level_of(known ? state_.row_sizes[i] / mean : 1.0f);
  }
  for (std::size_t j = 0; j < state_.column_sizes.size(); ++j) {
    state_.column_levels[j] = level_of(state_.column_sizes[j]);
  }
  if (k == 0) state_.column_levels[0] = level_of(state_.row_sizes[0]);
  derive();
}

std::size_t MatrixBasis::bytes() const {
  const std::size_t k = size(state_.directions);
  const std::size_t extents = size(state_.shape.rows) + size(state_.shape.cols);
  // Directions, sketches, both forms of the reflectors; sizes and levels.
  return extents * (4 * k * sizeof(float) + 2 * (sizeof(float) + sizeof(std::uint16_t)));
}

}  // namespace thinwire::spectral
