// The orthogonal basis in which a layer's gradient is coded: learned from the means that all ranks
// decode, so that none of it travels and all ranks have the same bits of it.
//
// For a matrix M [rows, cols] the basis is Y = Lᵀ M R with the leading directions of the gradients'
// column space in L and of their row space in R (block_reflector.h): sizes of Y's elements differ
// far more than those of M's, and what an entropy coder needs falls with that. The directions
// follow by one step of subspace iteration at each refresh, as PowerSGD's warm start does, from
//
//   left sketch   Σ Y (first rows of Y)ᵀ      ≈ G_L L_k, in the basis itself,
//   right sketch  Σ Yᵀ (first columns of Y)
//
// over the means since the last refresh: half of what M (Mᵀ L) would take. Mean squares of Y's rows
// and columns, with exponential weights, predict the size of each element, see level_order.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/common/philox.h"
#include "thinwire/compressors/spectral/block_reflector.h"

namespace thinwire::spectral {

// How a layer is seen as a matrix: [shape[0], all others], so embeddings by rows and convolutions
// as output channels × the rest; a vector is one row, which has no basis.
struct MatrixShape {
  std::int64_t rows = 1, cols = 0;
  bool operator==(const MatrixShape&) const = default;
};
MatrixShape matrix_shape(std::span<const std::int64_t> shape, std::int64_t numel);
// Directions of either side, of at most so many.
std::int64_t directions_of(const MatrixShape& shape, int most);

class MatrixBasis {
 public:
  // Bit-exact. Directions are those of both sides, at most the rows and the columns.
  struct State {
    MatrixShape shape;
    std::int64_t directions = 0;
    std::int64_t steps = 0;          // means that it has learned from
    std::vector<float> left, right;  // [directions, rows], [directions, cols], orthonormal
    std::vector<float> left_sketch, right_sketch;  // [rows, directions], [directions, cols]
    std::vector<float> row_sizes, column_sizes;    // mean squares of Y; none of columns of a vector
    std::vector<float> row_levels, column_levels;  // whole numbers, of the last refresh
    bool operator==(const State&) const = default;
  };

  // Random directions, the same for equal keys; the rank of the key does not matter.
  MatrixBasis(MatrixShape shape, int directions, const RandomKey& key);
  // Throws InvalidArgument where the sizes do not fit one another.
  explicit MatrixBasis(State state);

  const State& state() const { return state_; }
  const MatrixShape& shape() const { return state_.shape; }

  // values, a matrix of the shape, into the basis and out of it, in place.
  void turn_into(std::span<float> values) const { turned(Direction::kInto, values); }
  void turn_out_of(std::span<float> values) const { turned(Direction::kOutOf, values); }

  // Learns from a mean in the basis, finite everywhere.
  void learn(std::span<const float> mean);
  // Takes over what it has learned: another basis, and levels by the sizes so far. A side of which
  // nothing can be made, as where all means were zero, stays as it is.
  void refresh(const RandomKey& key);

  // Of the elements in the basis; a vector has one level for all.
  std::span<const std::uint16_t> row_levels() const { return row_levels_; }
  std::span<const std::uint16_t> column_levels() const { return column_levels_; }

  // About what it holds.
  std::size_t bytes() const;

 private:
  void turned(Direction direction, std::span<float> values) const;
  void derive();
  float note_sizes(std::span<const float> mean);

  State state_;
  // Derived from the state.
  BlockReflector left_, right_;
  std::vector<std::uint16_t> row_levels_, column_levels_;
};

}  // namespace thinwire::spectral
