// Random rotations for the cross-polytope hash: of a rotated token the hash looks at the first
// `outputs` coordinates.
//
// Two kinds:
// - Hadamard: y = H D₃ H D₂ H D₁ x, with H the Walsh-Hadamard matrix and D random signs; a fast
//   stand-in for a random rotation. Three rounds, because two are not enough on structured input:
//   H D₂ H D₁ maps the basis vectors e_i to permutations of one vector, so that their hashes are
//   all determined by a single one. Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt, "Practical and
//   optimal LSH for angular distance", NeurIPS 2015, section 3.
//   The rotations of one layer share D₁: the first round only spreads every token over all
//   coordinates, and sharing it saves nearly half of the work of six hashes.
// - Gaussian: y = G x with independent standard normal entries, the rotation for which the
//   collision probabilities are known in closed form.
//
// H is in natural order and unnormalised: the hash does not depend on the length of y.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace thinwire::lsh {

enum class RotationKind { kHadamard, kGaussian };

// Which rotation of all that there are. Equal seeds give equal rotations, bit for bit, on every
// rank and processor.
struct RotationSeed {
  std::uint64_t seed = 0;
  std::uint64_t generation = 0;  // raised to draw fresh rotations
  std::uint32_t layer = 0;
  std::uint32_t hash = 0;
};

// The random numbers of one rotation. Immutable, so safe to share between threads.
class Rotation {
 public:
  static constexpr int kRounds = 3;

  // Of tokens with `dim` elements the first `outputs` rotated coordinates, 1 <= outputs <= dim.
  // `rounds` is for experiments (Hadamard only). Throws InvalidArgument.
  Rotation(RotationKind kind, std::int64_t dim, std::int64_t outputs, const RotationSeed& seed,
           int rounds = kRounds);

  RotationKind kind() const { return kind_; }
  std::int64_t dim() const { return dim_; }
  std::int64_t outputs() const { return outputs_; }
  int rounds() const { return rounds_; }

  // Hadamard: tokens are padded with zeros to this power of two.
  std::int64_t padded_dim() const { return padded_dim_; }
  // Hadamard: the smallest power of two that holds the outputs.
  std::int64_t padded_outputs() const { return padded_outputs_; }
  // Hadamard: padded_dim words for one round, the sign bit of a float or 0.
  std::span<const std::uint32_t> signs(int round) const;
  // Gaussian: [outputs, dim], row-major.
  std::span<const float> matrix() const { return matrix_; }

 private:
  RotationKind kind_;
  std::int64_t dim_;
  std::int64_t outputs_;
  int rounds_;
  std::int64_t padded_dim_;
  std::int64_t padded_outputs_;
  std::vector<std::uint32_t> signs_;
  std::vector<float> matrix_;
};

}  // namespace thinwire::lsh
