// Orthogonal matrices that turn a few directions onto the first coordinates and leave the rest
// nearly as it is, as products of Householder reflections are: two thin products apply one.
//
//   Q = I − W T Wᵀ,  W = U − E,  T = −(U₁ − I)⁻ᵀ
//
// for U [n, k] with orthonormal columns, E the first k columns of I and U₁ the first k rows of U:
// Q E = U and QᵀQ = I. Columns of U may be negated so that U₁ − I has an inverse of norm about 1.
//
// Ballard, Demmel, Grigori, Jacquelin, Nguyen, Solomonik, "Reconstructing Householder vectors from
// tall-skinny QR", IPDPS 2014; the basis-kernel form is that of Sun and Bischof, "A basis-kernel
// representation of orthogonal matrices", SIAM J. Matrix Anal. Appl., 1995.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace thinwire::spectral {

// Immutable; thread-safe.
class BlockReflector {
 public:
  // The identity of any size.
  BlockReflector() = default;
  // `columns`: U, k runs of n numbers, 1 ≤ k ≤ n; signs of columns change as above.
  BlockReflector(std::span<float> columns, std::size_t n, std::size_t k);

  bool identity() const { return padded_ == 0; }

 private:
  friend class Turn;
  std::size_t padded_ = 0;           // k, rounded up to kernels::kThinColumns: the rest is zero
  std::vector<float> rows_;          // W [n, padded]
  std::vector<float> columns_;       // Wᵀ [padded, n]
  std::vector<float> t_;             // T [padded, padded]
  std::vector<float> t_transposed_;  // Tᵀ
};

enum class Direction { kInto, kOutOf };

// m [rows, cols] row-major becomes Lᵀ M R (kInto), or L M Rᵀ (kOutOf), for a left matrix L of size
// `rows` and a right one R of size `cols`, or identities. All arithmetic is float32 in a fixed
// order, so that the bits are the same on every processor. Values that are not finite spread over
// all of m unless both are identities. Thread-safe; allocates nothing once warm.
void turn(const BlockReflector& left, const BlockReflector& right, Direction direction,
          std::size_t rows, std::size_t cols, std::span<float> m);

}  // namespace thinwire::spectral
