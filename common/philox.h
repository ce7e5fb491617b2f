// Counter-based random numbers: the i-th number of a stream is a pure function of (stream, i), so
// results do not depend on thread count, SIMD width or the order of evaluation.
//
// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace thinwire {

// What all randomness of a codec is derived from. Equal keys give equal numbers on every rank and
// processor; keys that differ in any field give unrelated streams.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint32_t layer = 0;
  std::uint32_t rank = 0;
  std::uint32_t stage = 0;          // 0: a rank's own encoding; 1: the owner's second encoding
  std::uint64_t first_element = 0;  // index, within the layer, of the first element of the view
};

// One 4x32 block of Philox with ten rounds.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::array<std::uint32_t, 2> key) {
  constexpr std::uint64_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = kMul0 * counter[0];
    const std::uint64_t p1 = kMul1 * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

// The stream of a RandomKey (without first_element). Word i of the stream is word i % 4 of the
// Philox block with counter {low(i / 4), high(i / 4), salt[0], salt[1]} under `key`.
struct PhiloxStream {
  std::array<std::uint32_t, 2> key{};
  std::array<std::uint32_t, 2> salt{};

  static constexpr PhiloxStream of(const RandomKey& k) {
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
    const auto a =
        philox4x32({low(k.step), high(k.step), k.layer, k.rank}, {low(k.seed), high(k.seed)});
    const auto b = philox4x32({a[0], a[1], k.stage, 0}, {a[2], a[3]});
    return {{b[0], b[1]}, {b[2], b[3]}};
  }

  constexpr std::array<std::uint32_t, 4> block(std::uint64_t index) const {
    return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                       salt[0], salt[1]},
                      key);
  }

  constexpr std::uint32_t word(std::uint64_t index) const { return block(index / 4)[index % 4]; }

  // Uniform in [0, 1), a multiple of 2^-24.
  constexpr float uniform(std::uint64_t index) const {
    return static_cast<float>(word(index) >> 8) * 0x1p-24f;
  }
};

}  // namespace thinwire
