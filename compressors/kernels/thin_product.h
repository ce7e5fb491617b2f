// Products of a large matrix M [rows, cols], row-major, with thin ones, in float32 and without an
// order of summation that depends on the processor: thin_product_ref.h is the scalar reference that
// every SIMD target equals bit for bit. low_rank.h has the product with Mᵀ.
//
// The columns of a thin matrix are a multiple of kThinColumns, of which some may be zero: a row of
// it is whole vectors then, and sums need no folding. Thread-safe; allocates nothing.
#pragma once

#include <cstddef>

namespace thinwire::kernels {

inline constexpr std::size_t kThinColumns = 16;
constexpr std::size_t thin_columns(std::size_t columns) {
  return (columns + kThinColumns - 1) / kThinColumns * kThinColumns;
}

// P[i][c] = Σ_j M[i][j] W[j][c], j ascending; W [cols, k] and P [rows, k] row-major.
void thin_multiply(const float* m, std::size_t rows, std::size_t cols, const float* w,
                   std::size_t k, float* p);

// M[i][j] −= Σ_c P[i][c] Q[c][j], c ascending from 0; P [rows, k] and Q [k, cols] row-major, any k.
void thin_subtract(const float* p, const float* q, std::size_t rows, std::size_t cols,
                   std::size_t k, float* m);

// of_rows[i] = Σ_j M[i][j]², in 16 lanes as in low_rank.h; of_columns[j] = Σ_i M[i][j]², i
// ascending.
void sums_of_squares(const float* m, std::size_t rows, std::size_t cols, float* of_rows,
                     float* of_columns);

}  // namespace thinwire::kernels
