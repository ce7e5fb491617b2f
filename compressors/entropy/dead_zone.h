// Uniform quantisation with a dead zone: float32 values to small symbols and back.
//
//   magnitude    m = ⌊|x| / step + rounding⌋, at most 2^22; rounding below 1/2 widens the zero bin
//   symbol       0 for m = 0, 2m − 1 for positive and 2m for negative values, of m limited to
//                `bound`: what is beyond goes to a list, m − bound of every element with m ≥ bound
//   value        ± (m + centroid) · step, with one centroid each for m = 1, m = 2 and m ≥ 3
//
// All arithmetic is float32, rounded after every operation, so that all SIMD targets give the bits
// of dead_zone_ref.h. Thread-safe, any alignment, no memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/compressors/entropy/dead_zone_math.h"

namespace thinwire::entropy {

struct DeadZone {
  float inverse_step = 1;
  float rounding = 0.5f;  // in [0, 1/2]
  int bound = 15;         // 1 … 15
};

// Centroids are of m = 1, m = 2 and m ≥ 3.
inline constexpr std::size_t kCentroids = 3;
// Values that one call takes: sums of fractions then fit 32 bits.
inline constexpr std::size_t kMaxQuantised = std::size_t{1} << 22;

struct QuantisedSums {
  // For each centroid: elements, and the sum of ⌊256 (|x| / step − m)⌋, rounded to zero.
  std::array<std::int64_t, kCentroids> count{}, fraction{};
  std::size_t excess = 0;  // numbers added to the list
  bool finite = true;      // else the symbols mean nothing
};

// Fills symbols[0 … size − 1] and adds to `sums`. `excess` has room for the elements and 16 more.
void quantise(std::span<const float> values, const DeadZone& zone, std::uint8_t* symbols,
              std::uint32_t* excess, QuantisedSums& sums);

// Values by symbol, and what to do with them.
struct Levels {
  std::array<float, 32> of_symbol{};
  int bound = 15;
};
enum class Apply { kAssign, kAdd, kSubtract };

// values[i] = the level of symbols[i], or += or −= it. The level of a symbol at the bound is
// ± the next of `beyond`, of which as many are read as there are such symbols; `beyond` can be read
// 16 elements further. Symbols are at most 2 bound.
void apply_levels(const std::uint8_t* symbols, const float* beyond, const Levels& levels,
                  Apply apply, std::span<float> values);

// pairs[i] = 5 symbols[2i] + symbols[2i + 1], of symbols below 5; an odd one is paired with 0.
void join_pairs(std::span<const std::uint8_t> symbols, std::uint8_t* pairs);
// The inverse, of pairs below 25. False where an odd symbol's partner is not 0.
bool split_pairs(const std::uint8_t* pairs, std::span<std::uint8_t> symbols);

// How often each symbol below 32 occurs; there are no others.
std::array<std::uint32_t, 32> count_symbols(std::span<const std::uint8_t> symbols);

// How many of the symbols are at least `least`.
std::size_t at_least(std::span<const std::uint8_t> symbols, std::uint8_t least);

}  // namespace thinwire::entropy
