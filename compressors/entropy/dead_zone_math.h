// How one element is quantised, and how a part's zone follows from a sample of it, that the CPU and
// the CUDA kernels share (dead_zone.h).
#pragma once

#include <cstdint>

#include "thinwire/compressors/entropy/fixed_log.h"

namespace thinwire::entropy {

inline constexpr float kLargestMagnitude = 0x1p22f;

// |x| / step of a finite value, limited.
THINWIRE_HOST_DEVICE float scaled_magnitude(float value, float inverse_step) {
  const float scaled = kernels::float_of(kernels::bits_of(value) & 0x7FFFFFFFu) * inverse_step;
  return scaled < kLargestMagnitude ? scaled : kLargestMagnitude;
}
THINWIRE_HOST_DEVICE std::uint32_t rounded_magnitude(float scaled, float rounding) {
  return static_cast<std::uint32_t>(scaled + rounding);
}
// What is added up for the centroid of a magnitude above 0: ⌊256 (|x| / step − m)⌋ to zero.
THINWIRE_HOST_DEVICE std::int32_t centroid_fraction(float scaled, std::uint32_t magnitude) {
  return static_cast<std::int32_t>((scaled - static_cast<float>(magnitude)) * 256);
}
THINWIRE_HOST_DEVICE std::uint32_t symbol_of_magnitude(std::uint32_t magnitude, bool negative,
                                                       std::uint32_t bound) {
  const std::uint32_t limited = magnitude < bound ? magnitude : bound;
  return 2 * limited - (limited > 0 && !negative ? 1 : 0);
}

// Elements of a part that say what its zone is, the first of each of so many shares of it.
inline constexpr std::uint32_t kZoneSample = 256;
// Pairs of codes take half the time of single ones and more bytes where many elements are beyond
// their bound; and their table pays from a few hundred pairs on.
inline constexpr std::uint32_t kFewestForPairs = 2048;
inline constexpr std::uint32_t kMostBeyondPairs = 5;  // of the sample, 2 %
inline constexpr int kBoundOfCodes = 15, kBoundOfPairs = 2;

// r of a part whose values of magnitude m − r and more become m, where so many of the sample are
// below 1 − r and 2 − r steps for the r that was asked for. Rounding to zero instead of one costs
// (1 − 2 r) step² of squared error where it saves log2(2 p0 / p1) bits; of that rule's factor,
// 0.058 at high rates, half leaves less in residuals and loses nothing.
THINWIRE_HOST_DEVICE float rounding_of_part(std::uint64_t below_one, std::uint64_t below_two) {
  constexpr double kOfABit = 0.03 / kFixedBit, kLeast = 0.05, kMost = 0.5;
  // Half an element more of each sort, so that none is missing.
  const FixedBits dear =
      fixed_log2(4 * below_one + 2) - fixed_log2(2 * (below_two - below_one) + 1);
  const double rounding = kMost - kOfABit * static_cast<double>(dear);
  return static_cast<float>(rounding < kLeast ? kLeast : rounding > kMost ? kMost : rounding);
}

}  // namespace thinwire::entropy
