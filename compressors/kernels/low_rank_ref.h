// Scalar reference of low_rank.h.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>

#include "thinwire/compressors/kernels/low_rank_math.h"

namespace thinwire::kernels::ref {

inline constexpr std::size_t kSumLanes = 16;

template <typename T>
T fold_lanes(std::array<T, kSumLanes> lanes) {
  for (std::size_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

inline void low_rank_multiply(const float* m, std::size_t rows, std::size_t cols, const float* q,
                              std::size_t r, float* p) {
  for (std::size_t c = 0; c < r; ++c) {
    for (std::size_t i = 0; i < rows; ++i) {
      std::array<float, kSumLanes> lanes{};
      for (std::size_t j = 0; j < cols; ++j)
        lanes[j % kSumLanes] += m[i * cols + j] * q[c * cols + j];
      p[c * rows + i] = fold_lanes(lanes);
    }
  }
}

inline void low_rank_multiply_transposed(const float* m, std::size_t rows, std::size_t cols,
                                         const float* p, std::size_t r, float* q) {
  for (std::size_t c = 0; c < r; ++c) {
    for (std::size_t j = 0; j < cols; ++j) {
      float sum = 0;
      for (std::size_t i = 0; i < rows; ++i) sum += m[i * cols + j] * p[c * rows + i];
      q[c * cols + j] = sum;
    }
  }
}

inline void low_rank_reconstruct(const float* p, const float* q, std::size_t rows, std::size_t cols,
                                 std::size_t r, float* m) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      float sum = 0;
      for (std::size_t c = 0; c < r; ++c) sum += p[c * rows + i] * q[c * cols + j];
      m[i * cols + j] = sum;
    }
  }
}

inline double dot(const float* a, const float* b, std::size_t n) {
  std::array<double, kSumLanes> lanes{};
  for (std::size_t i = 0; i < n; ++i) {
    lanes[i % kSumLanes] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return fold_lanes(lanes);
}

// a += factor · b
inline void axpy(float* a, const float* b, float factor, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) a[i] += factor * b[i];
}

// The algorithm of orthogonalize() over any dot and axpy.
template <typename Dot, typename Axpy>
void orthogonalize_with(float* p, std::size_t rows, std::size_t r, const Dot& dot_of,
                        const Axpy& add) {
  for (std::size_t c = 0; c < r; ++c) {
    float* column = p + c * rows;
    // A power of two brings the column near length one, where squares neither overflow nor vanish.
    float largest = 0;
    for (std::size_t i = 0; i < rows; ++i) largest = std::fmax(largest, std::fabs(column[i]));
    if (largest > 0 && std::isfinite(largest)) {
      const int exponent = exponent_of(largest);
      for (std::size_t i = 0; i < rows; ++i) column[i] = scaled_down(column[i], exponent);
    }
    const double before = std::sqrt(dot_of(column, column, rows));
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t k = 0; k < c; ++k) {
        const float* earlier = p + k * rows;
        add(column, earlier, static_cast<float>(-dot_of(column, earlier, rows)), rows);
      }
    }
    const double length = std::sqrt(dot_of(column, column, rows));
    // Written so that NaN is not taken for dependent.
    const bool dependent = length <= kDependent * before;
    const auto scale = static_cast<float>(1.0 / length);
    for (std::size_t i = 0; i < rows; ++i) column[i] = dependent ? 0.0f : column[i] * scale;
  }
}

inline void orthogonalize(float* p, std::size_t rows, std::size_t r) {
  orthogonalize_with(p, rows, r, dot, axpy);
}

}  // namespace thinwire::kernels::ref
