// The matrix mathematics of PowerSGD, in float32 and without an order of summation that depends on
// the processor: M [rows, cols] ~ P Qᵀ.
//
//   P = M Q;  orthogonalise(P);  Q = Mᵀ P;  M ~ P Qᵀ
//
// M is row-major. Factors are stored by columns: P is r runs of `rows` numbers, Q r runs of `cols`,
// so that a lower rank is a prefix of the memory and a higher one appends to it.
//
// Sums over i are kept in 16 lanes, i in lane i % 16, folded in halves; low_rank_ref.h is the
// scalar reference that every SIMD target equals bit for bit. Not-finite values of M reach every
// element of P Qᵀ in the rows or columns they touch, and after orthogonalise() all of them.
// Thread-safe; allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/common/philox.h"

namespace thinwire::kernels {

// P[c][i] = Σ_j M[i][j] Q[c][j]
void low_rank_multiply(const float* m, std::size_t rows, std::size_t cols, const float* q,
                       std::size_t r, float* p);

// Q[c][j] = Σ_i M[i][j] P[c][i], i ascending.
void low_rank_multiply_transposed(const float* m, std::size_t rows, std::size_t cols,
                                  const float* p, std::size_t r, float* q);

// M[i][j] = Σ_c P[c][i] Q[c][j], c ascending.
void low_rank_reconstruct(const float* p, const float* q, std::size_t rows, std::size_t cols,
                          std::size_t r, float* m);

// lost = M − P own_Qᵀ, then M = P Qᵀ, each as low_rank_reconstruct() does it, in one pass.
void low_rank_replace(const float* p, const float* own_q, const float* q, std::size_t rows,
                      std::size_t cols, std::size_t r, float* m, float* lost);

// Makes the r columns of length `rows` orthonormal: modified Gram-Schmidt, twice, with sums in
// double precision. A column that depends on those before it (what is left is below 1e-6 of its
// length) or is zero becomes zero: P Pᵀ stays a projection. NaN stays NaN.
void orthogonalize(float* p, std::size_t rows, std::size_t r);

}  // namespace thinwire::kernels
