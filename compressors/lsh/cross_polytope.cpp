// One SIMD lane holds one token: a tile of tokens is transposed once, and then rotations, sums and
// the search for the largest coordinate are the scalar code of hash_ref.h in every lane. No value
// ever crosses lanes, so all targets agree on every bit.

#include "thinwire/compressors/lsh/cross_polytope.h"

#include <algorithm>
#include <limits>

#include "thinwire/common/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/lsh/cross_polytope.cpp"
#include <hwy/aligned_allocator.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::lsh::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sixteen tokens of dimension 512 are 32 KiB, about the first-level cache.
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

HWY_INLINE void Butterfly(V& a, V& b) {
  const V sum = hn::Add(a, b);
  b = hn::Sub(a, b);
  a = sum;
}

// Element j of all lanes, negated where signs[j] (null: none) says so.
HWY_INLINE V LoadFlipped(const float* in, const std::uint32_t* signs, std::size_t j) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  const V v = hn::Load(d, in + j * hn::Lanes(d));
  if (signs == nullptr) return v;
  return hn::BitCast(d, hn::Xor(hn::BitCast(du, v), hn::Set(du, signs[j])));
}

HWY_INLINE void StoreElement(V v, float* out, std::size_t j) {
  const D d;
  hn::Store(v, d, out + j * hn::Lanes(d));
}

// The butterflies of distances h, 2h and 4h in one pass over the memory, from `in` to `out` (which
// may be equal).
void ThreeStages(const float* in, float* out, std::size_t n, std::size_t h,
                 const std::uint32_t* signs) {
  for (std::size_t base = 0; base < n; base += 8 * h) {
    for (std::size_t j = base; j < base + h; ++j) {
      V v0 = LoadFlipped(in, signs, j);
      V v1 = LoadFlipped(in, signs, j + h);
      V v2 = LoadFlipped(in, signs, j + 2 * h);
      V v3 = LoadFlipped(in, signs, j + 3 * h);
      V v4 = LoadFlipped(in, signs, j + 4 * h);
      V v5 = LoadFlipped(in, signs, j + 5 * h);
      V v6 = LoadFlipped(in, signs, j + 6 * h);
      V v7 = LoadFlipped(in, signs, j + 7 * h);
      Butterfly(v0, v1), Butterfly(v2, v3), Butterfly(v4, v5), Butterfly(v6, v7);
      Butterfly(v0, v2), Butterfly(v1, v3), Butterfly(v4, v6), Butterfly(v5, v7);
      Butterfly(v0, v4), Butterfly(v1, v5), Butterfly(v2, v6), Butterfly(v3, v7);
      StoreElement(v0, out, j);
      StoreElement(v1, out, j + h);
      StoreElement(v2, out, j + 2 * h);
      StoreElement(v3, out, j + 3 * h);
      StoreElement(v4, out, j + 4 * h);
      StoreElement(v5, out, j + 5 * h);
      StoreElement(v6, out, j + 6 * h);
      StoreElement(v7, out, j + 7 * h);
    }
  }
}

// The butterflies of distance h alone.
void OneStage(const float* in, float* out, std::size_t n, std::size_t h,
              const std::uint32_t* signs) {
  for (std::size_t base = 0; base < n; base += 2 * h) {
    for (std::size_t j = base; j < base + h; ++j) {
      V a = LoadFlipped(in, signs, j);
      V b = LoadFlipped(in, signs, j + h);
      Butterfly(a, b);
      StoreElement(a, out, j);
      StoreElement(b, out, j + h);
    }
  }
}

// out = H (signs · in), all of size n.
void WalshHadamard(const float* in, float* out, std::size_t n, const std::uint32_t* signs) {
  if (n == 1) StoreElement(LoadFlipped(in, signs, 0), out, 0);
  for (std::size_t h = 1; h < n;) {
    if (n / h >= 8) {
      ThreeStages(in, out, n, h, signs);
      h *= 8;
    } else {
      OneStage(in, out, n, h, signs);
      h *= 2;
    }
    in = out;  // flipped once, in place from here on
    signs = nullptr;
  }
}

// out[r] = sum of signs[j] · in[j] over j = r, r + m, r + 2m, ... in this order.
void Fold(const float* in, float* out, std::size_t n, std::size_t m, const std::uint32_t* signs) {
  std::size_t r = 0;
  for (; r + 4 <= m; r += 4) {  // four sums at a time hide the latency of the addition
    V s0 = LoadFlipped(in, signs, r);
    V s1 = LoadFlipped(in, signs, r + 1);
    V s2 = LoadFlipped(in, signs, r + 2);
    V s3 = LoadFlipped(in, signs, r + 3);
    for (std::size_t j = r + m; j < n; j += m) {
      s0 = hn::Add(s0, LoadFlipped(in, signs, j));
      s1 = hn::Add(s1, LoadFlipped(in, signs, j + 1));
      s2 = hn::Add(s2, LoadFlipped(in, signs, j + 2));
      s3 = hn::Add(s3, LoadFlipped(in, signs, j + 3));
    }
    StoreElement(s0, out, r);
    StoreElement(s1, out, r + 1);
    StoreElement(s2, out, r + 2);
    StoreElement(s3, out, r + 3);
  }
  for (; r < m; ++r) {
    V sum = LoadFlipped(in, signs, r);
    for (std::size_t j = r + m; j < n; j += m) sum = hn::Add(sum, LoadFlipped(in, signs, j));
    StoreElement(sum, out, r);
  }
}

// out[i] = sum over j of matrix[i, j] · in[j].
void MultiplyMatrix(const float* matrix, std::size_t rows, std::size_t columns, const float* in,
                    float* out) {
  const D d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    const float* row = matrix + i * columns;
    for (std::size_t j = 0; j < columns; ++j) {
      const V x = hn::Load(d, in + j * lanes);
      s0 = hn::Add(s0, hn::Mul(hn::Set(d, row[j]), x));
      s1 = hn::Add(s1, hn::Mul(hn::Set(d, row[columns + j]), x));
      s2 = hn::Add(s2, hn::Mul(hn::Set(d, row[2 * columns + j]), x));
      s3 = hn::Add(s3, hn::Mul(hn::Set(d, row[3 * columns + j]), x));
    }
    hn::Store(s0, d, out + i * lanes);
    hn::Store(s1, d, out + (i + 1) * lanes);
    hn::Store(s2, d, out + (i + 2) * lanes);
    hn::Store(s3, d, out + (i + 3) * lanes);
  }
  for (; i < rows; ++i) {
    V sum = hn::Zero(d);
    for (std::size_t j = 0; j < columns; ++j) {
      sum = hn::Add(sum, hn::Mul(hn::Set(d, matrix[i * columns + j]), hn::Load(d, in + j * lanes)));
    }
    hn::Store(sum, d, out + i * lanes);
  }
}

// codes[lane] of the vertex nearest to the `m` rotated coordinates of each lane.
void NearestVertices(const float* rotated, std::size_t m, std::uint32_t* codes) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  const std::size_t lanes = hn::Lanes(d);
  const V largest = hn::Set(d, std::numeric_limits<float>::max());
  V best = hn::Set(d, -1.0f);
  auto code = hn::Zero(du);
  auto finite = hn::Eq(code, code);
  for (std::size_t i = 0; i < m; ++i) {
    const V y = hn::Load(d, rotated + i * lanes);
    const V magnitude = hn::Abs(y);
    finite = hn::And(finite, hn::RebindMask(du, hn::Le(magnitude, largest)));
    const auto better = hn::Gt(magnitude, best);
    best = hn::IfThenElse(better, magnitude, best);
    const auto index = hn::Set(du, static_cast<std::uint32_t>(2 * i));
    const auto negative = hn::RebindMask(du, hn::Lt(y, hn::Zero(d)));
    const auto vertex = hn::IfThenElse(negative, hn::Add(index, hn::Set(du, 1)), index);
    code = hn::IfThenElse(hn::RebindMask(du, better), vertex, code);
  }
  hn::Store(hn::IfThenElse(finite, code, hn::Set(du, kUnhashable)), du, codes);
}

// tile[j, lane] = tokens[lane, j]; lanes without a token are zero.
void Transpose(const float* tokens, std::size_t filled, std::size_t dim, float* tile) {
  const std::size_t lanes = hn::Lanes(D());
  if (filled < lanes) std::fill_n(tile, dim * lanes, 0.0f);
  // Blocks of a cache line of every token, so that both sides stay in the first-level cache.
  constexpr std::size_t kBlock = 16;
  for (std::size_t begin = 0; begin < dim; begin += kBlock) {
    const std::size_t end = std::min(dim, begin + kBlock);
    for (std::size_t lane = 0; lane < filled; ++lane) {
      for (std::size_t j = begin; j < end; ++j) tile[j * lanes + lane] = tokens[lane * dim + j];
    }
  }
}

void HashTokens(std::span<const Rotation> rotations, std::span<const float> tokens, std::size_t dim,
                HashCode* codes) {
  const D d;
  const std::size_t lanes = hn::Lanes(d);
  const std::size_t count = tokens.size() / dim;
  const std::size_t hashes = rotations.size();
  std::size_t rows = dim;
  for (const auto& rotation : rotations) {
    rows = std::max(rows, static_cast<std::size_t>(rotation.padded_dim()));
  }
  // [rows, lanes] each, the rows past dim stay zero.
  const auto tile = hwy::AllocateAligned<float>(rows * lanes);
  const auto shared = hwy::AllocateAligned<float>(rows * lanes);
  const auto scratch = hwy::AllocateAligned<float>(rows * lanes);
  const auto rotated = hwy::AllocateAligned<float>(rows * lanes);
  std::fill_n(tile.get(), rows * lanes, 0.0f);
  alignas(64) std::uint32_t tile_codes[16];

  for (std::size_t first = 0; first < count; first += lanes) {
    const std::size_t filled = std::min(lanes, count - first);
    Transpose(tokens.data() + first * dim, filled, dim, tile.get());
    for (std::size_t hash = 0; hash < hashes; ++hash) {
      const Rotation& rotation = rotations[hash];
      const auto outputs = static_cast<std::size_t>(rotation.outputs());
      if (rotation.kind() == RotationKind::kGaussian) {
        MultiplyMatrix(rotation.matrix().data(), outputs, dim, tile.get(), rotated.get());
      } else {
        const auto n = static_cast<std::size_t>(rotation.padded_dim());
        const auto m = static_cast<std::size_t>(rotation.padded_outputs());
        const int rounds = rotation.rounds();
        const float* in = tile.get();
        if (rounds > 1) {
          if (hash == 0) WalshHadamard(in, shared.get(), n, rotation.signs(0).data());
          in = shared.get();
        }
        if (rounds > 2) {
          WalshHadamard(in, scratch.get(), n, rotation.signs(1).data());
          in = scratch.get();
        }
        Fold(in, rotated.get(), n, m, rotation.signs(rounds - 1).data());
        WalshHadamard(rotated.get(), rotated.get(), m, nullptr);
      }
      NearestVertices(rotated.get(), outputs, tile_codes);
      for (std::size_t lane = 0; lane < filled; ++lane) {
        codes[(first + lane) * hashes + hash] = static_cast<HashCode>(tile_codes[lane]);
      }
    }
  }
}

}  // namespace thinwire::lsh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::lsh {

HWY_EXPORT(HashTokens);

CrossPolytopeHash::CrossPolytopeHash(std::int64_t dim, const HashOptions& options) : dim_(dim) {
  check(options.hashes >= 1 && options.hashes <= kMaxHashes,
        "the number of hashes must lie in [1, ", kMaxHashes, "], got ", options.hashes);
  const std::int64_t outputs = options.hash_dim == 0 ? dim : options.hash_dim;
  rotations_.reserve(static_cast<std::size_t>(options.hashes));
  for (int hash = 0; hash < options.hashes; ++hash) {
    rotations_.emplace_back(options.rotation, dim, outputs,
                            RotationSeed{options.seed, options.generation, options.layer,
                                         static_cast<std::uint32_t>(hash)});
  }
}

void CrossPolytopeHash::hash(std::span<const float> tokens, std::span<HashCode> codes) const {
  const auto dim = static_cast<std::size_t>(dim_);
  check(tokens.size() % dim == 0, "tokens of dimension ", dim, " expected, got ", tokens.size(),
        " elements");
  check(codes.size() == tokens.size() / dim * rotations_.size(), "room for ",
        tokens.size() / dim * rotations_.size(), " codes expected, got ", codes.size());
  if (tokens.empty()) return;
  THINWIRE_DISPATCH(HashTokens)(rotations_, tokens, dim, codes.data());
}

}  // namespace thinwire::lsh
#endif  // HWY_ONCE
