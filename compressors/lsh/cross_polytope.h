// The cross-polytope hash: of a rotated token y the vertex of {±e_1, ..., ±e_m} that is nearest,
// that is the index of the largest |y_i| together with its sign. Tokens of a small angle get equal
// hashes with a high probability.
//
// Several hashes are ANDed. Because the first p of K hashes are a hash themselves, all prefixes
// p = 0..K come out of one pass (see cluster.h).
//
// m, the hash dimension, is a knob: with m = d (LSH-MoE, arXiv 2411.08446) an AND of six hashes
// needs cosines above 0.99 to survive; with m = 16 a cosine of 0.95 still survives often.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/lsh/rotation.h"

namespace thinwire::lsh {

// 2 i + 1 for the vertex -e_i, 2 i for +e_i. A tuple of codes is never packed into one word: six
// hashes of dimension 1024 do not fit 64 bits.
using HashCode = std::uint16_t;
// Code of a token whose rotation has non-finite coordinates: it holds NaN or infinities, or it is
// so large that its rotation overflows. Such a token equals no other.
inline constexpr HashCode kUnhashable = 0xFFFF;

struct HashOptions {
  int hashes = 6;
  std::int64_t hash_dim = 16;  // at most the tokens' dimension; 0: the tokens' dimension
  RotationKind rotation = RotationKind::kHadamard;
  std::uint64_t seed = 0;
  std::uint32_t layer = 0;
  std::uint64_t generation = 0;
};

// K hashes of tokens of one dimension. Immutable; all functions are safe to call from several
// threads at once.
class CrossPolytopeHash {
 public:
  static constexpr int kMaxHashes = 64;

  // Throws InvalidArgument for hashes outside [1, 64] or a hash dimension above `dim`.
  CrossPolytopeHash(std::int64_t dim, const HashOptions& options);

  int hashes() const { return static_cast<int>(rotations_.size()); }
  std::int64_t dim() const { return dim_; }
  std::span<const Rotation> rotations() const { return rotations_; }

  // tokens: [n, dim], row-major; codes: [n, hashes]. Of equal |y_i| the lower index wins; a token
  // of zeros gets codes 0. Bit-equal on every SIMD target, whatever n. Throws InvalidArgument when
  // the sizes do not fit.
  void hash(std::span<const float> tokens, std::span<HashCode> codes) const;

 private:
  std::int64_t dim_;
  std::vector<Rotation> rotations_;
};

}  // namespace thinwire::lsh
