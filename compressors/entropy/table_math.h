// Tables of symbols in integers that the CPU and the CUDA kernels share: what a weight stands for,
// the weights of a model, frequencies (symbol_table.h, code_model.h).
#pragma once

#include <cstdint>

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::entropy {

// Codes −14 … 14 and two symbols for what is beyond, or pairs of five codes: with 32 symbols a
// table is two registers, so that no SIMD target looks anything up in memory.
inline constexpr int kMaxSymbols = 32;
// Frequencies are in 2^-14: what the least frequency takes from 31 others is then 0.2 % of the
// probability, and states of 31 bits keep 0.1 % of the entropy bound.
inline constexpr int kTableBits = 14;
inline constexpr std::uint32_t kTableTotal = 1u << kTableBits;
// Codes of which pairs are made, and symbols of codes and of pairs.
inline constexpr int kCodesOfPairs = 5;
inline constexpr int kSymbolsOfCodes = 31, kSymbolsOfPairs = kCodesOfPairs * kCodesOfPairs;

inline constexpr int kMantissaBits = 4;
inline constexpr std::uint64_t kMantissa = 1u << kMantissaBits;
// The largest weight, 255: any histogram is scaled so that its total is about that.
inline constexpr std::uint64_t kLargestValue = (kMantissa + 14) << 15;

// What a weight stands for, and the weight, not 0, of the nearest number that has one.
THINWIRE_HOST_DEVICE std::uint64_t value_of(std::uint8_t weight) {
  if (weight == 0) return 0;
  const unsigned code = weight - 1u;
  return (kMantissa + code % kMantissa) << (code / kMantissa);
}
THINWIRE_HOST_DEVICE std::uint8_t nearest_weight(std::uint64_t value) {
  if (value < kMantissa) value = kMantissa;
  if (value > kLargestValue) value = kLargestValue;
  int exponent = 63 - kernels::leading_zeros(value) - kMantissaBits;
  std::uint64_t mantissa =
      (value + (exponent > 0 ? std::uint64_t{1} << (exponent - 1) : 0)) >> exponent;
  if (mantissa == 2 * kMantissa) {
    mantissa = kMantissa;
    ++exponent;
  }
  return static_cast<std::uint8_t>(1 + static_cast<std::uint64_t>(exponent) * kMantissa +
                                   (mantissa - kMantissa));
}

// The weight of a symbol that occurs so often among all.
THINWIRE_HOST_DEVICE std::uint8_t weight_of(std::uint64_t count, std::uint64_t total) {
  return count > 0 ? nearest_weight(count * kLargestValue / total) : std::uint8_t{0};
}

// The frequency of a weight, where all of them stand for `total`. The first of the largest weights
// gets what is left over beside.
THINWIRE_HOST_DEVICE std::uint32_t frequency_of(std::uint8_t weight, std::uint64_t total) {
  if (weight == 0) return 0;
  const auto frequency = static_cast<std::uint32_t>(value_of(weight) * kTableTotal / total);
  return frequency > 0 ? frequency : 1;
}

// How often codes occur, of 2^24, where magnitudes follow the odds of a model: sets codes[0] and
// both codes of magnitudes up to `last`.
inline constexpr std::uint64_t kOdds = 256;  // what a value of 1 : 1 is
inline constexpr int kModelTotalBits = 24;
THINWIRE_HOST_DEVICE void model_codes(std::uint8_t zeros, std::uint8_t decay, std::uint8_t last,
                                      std::uint32_t* codes) {
  constexpr std::uint64_t kTotal = std::uint64_t{1} << kModelTotalBits;
  const std::uint64_t of_zeros = value_of(zeros), of_decay = value_of(decay);
  const std::uint64_t none = kTotal * of_zeros / (of_zeros + kOdds);
  codes[0] = static_cast<std::uint32_t>(none);
  std::uint64_t rest = kTotal - none;
  for (unsigned m = 1; m <= last; ++m) {
    const std::uint64_t here = m < last ? rest * kOdds / (kOdds + of_decay) : rest;
    rest -= here;
    codes[2 * m - 1] = codes[2 * m] = static_cast<std::uint32_t>(here > 1 ? here / 2 : 1);
  }
}
// How often a pair of codes that occur so often does; they are independent.
THINWIRE_HOST_DEVICE std::uint32_t model_pair(std::uint32_t first, std::uint32_t second) {
  if (first == 0 || second == 0) return 0;
  const auto both = static_cast<std::uint32_t>(std::uint64_t{first} * second >> kModelTotalBits);
  return both > 0 ? both : 1;
}

// Of a stream (rans.h).
inline constexpr int kMaxLanes = 128;
inline constexpr std::uint32_t kStateLow = 1u << 15;

// Lanes of a stream that begins with so many symbols. A lane costs three bytes and hides the
// latency of a step; below 32 the lanes are no vectors, and below 0.3 ms that does not matter.
constexpr int lanes_for(std::uint64_t symbols) {
  if (symbols >= std::uint64_t{1} << 18) return 128;
  if (symbols >= std::uint64_t{1} << 16) return 64;
  if (symbols >= std::uint64_t{1} << 14) return 32;
  return symbols >= 1024 ? 8 : 2;
}

// The value of a magnitude m > 0 whose centroid is that byte.
THINWIRE_HOST_DEVICE float level_of(std::uint32_t magnitude, std::uint8_t centroid, float step) {
  return (static_cast<float>(magnitude) + (static_cast<float>(centroid) - 128.0f) / 256.0f) * step;
}

}  // namespace thinwire::entropy
