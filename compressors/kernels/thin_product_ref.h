// Scalar reference of thin_product.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "thinwire/compressors/kernels/low_rank_ref.h"

namespace thinwire::kernels::ref {

inline void thin_multiply(const float* m, std::size_t rows, std::size_t cols, const float* w,
                          std::size_t k, float* p) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t c = 0; c < k; ++c) {
      float sum = 0;
      for (std::size_t j = 0; j < cols; ++j) sum += m[i * cols + j] * w[j * k + c];
      p[i * k + c] = sum;
    }
  }
}

inline void thin_subtract(const float* p, const float* q, std::size_t rows, std::size_t cols,
                          std::size_t k, float* m) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      float sum = 0;
      for (std::size_t c = 0; c < k; ++c) sum += p[i * k + c] * q[c * cols + j];
      m[i * cols + j] -= sum;
    }
  }
}

inline void sums_of_squares(const float* m, std::size_t rows, std::size_t cols, float* of_rows,
                            float* of_columns) {
  std::fill_n(of_columns, cols, 0.0f);
  for (std::size_t i = 0; i < rows; ++i) {
    std::array<float, kSumLanes> lanes{};
    for (std::size_t j = 0; j < cols; ++j) {
      const float square = m[i * cols + j] * m[i * cols + j];
      lanes[j % kSumLanes] += square;
      of_columns[j] += square;
    }
    of_rows[i] = fold_lanes(lanes);
  }
}

}  // namespace thinwire::kernels::ref
