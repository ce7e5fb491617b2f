// How much of a matrix its best approximation of each rank leaves over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace thinwire::lgreco {

// Eigenvalues of a symmetric matrix in ascending order, each to within a few 1e-16 of the largest
// magnitude times the size. `matrix` is size × size, row-major, and is overwritten; its upper
// triangle is not read. Householder reduction to tridiagonal form, then implicit QR with
// Wilkinson's shift (Golub and Van Loan, "Matrix Computations", sections 8.3.1 and 8.3.3).
std::vector<double> symmetric_eigenvalues(std::span<double> matrix, std::size_t size);

// For each rank the squared Frobenius norm of matrix − its best approximation of that rank
// (Eckart-Young: the sum of the squares of the other singular values). `matrix` is rows × cols,
// row-major and finite.
//
// Exact where that takes fewer multiplications, by the Gram matrix of the smaller side (about below
// 100 rows or columns): then tails below about 1e-15 of the total are noise. Else estimated in a
// random subspace of the largest rank plus eight columns, after two rounds of subspace iteration
// (Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53, 2011,
// algorithm 4.4). The estimate is never below the truth; of the root of the tail it was within 2 %
// even for flat spectra. The subspace is the same for equal shapes. Time is at most
// about 7 · rows · cols · (largest rank + 8) multiplications. Thread-safe.
std::vector<double> low_rank_squared_errors(std::span<const float> matrix, std::int64_t rows,
                                            std::int64_t cols, std::span<const std::int64_t> ranks);

}  // namespace thinwire::lgreco
