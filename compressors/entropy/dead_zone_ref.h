// One element at a time: the oracle of dead_zone_cpu.cpp, and what tails use.
#pragma once

#include <algorithm>
#include <bit>

#include "thinwire/compressors/entropy/dead_zone.h"

namespace thinwire::entropy::ref {

inline void quantise(std::span<const float> values, const DeadZone& zone, std::uint8_t* symbols,
                     std::uint32_t* excess, QuantisedSums& sums) {
  const auto bound = static_cast<std::uint32_t>(zone.bound);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(values[i]);
    if ((bits & 0x7FFFFFFFu) > 0x7F7FFFFFu) {
      sums.finite = false;
      symbols[i] = 0;
      continue;
    }
    const float scaled = scaled_magnitude(values[i], zone.inverse_step);
    const std::uint32_t magnitude = rounded_magnitude(scaled, zone.rounding);
    if (magnitude > 0) {
      const std::size_t centroid = std::min<std::size_t>(magnitude, kCentroids) - 1;
      ++sums.count[centroid];
      sums.fraction[centroid] += centroid_fraction(scaled, magnitude);
    }
    symbols[i] = static_cast<std::uint8_t>(symbol_of_magnitude(magnitude, bits >> 31 != 0, bound));
    if (magnitude >= bound) excess[sums.excess++] = magnitude - bound;
  }
}

inline void apply_levels(const std::uint8_t* symbols, const float* beyond, const Levels& levels,
                         Apply apply, std::span<float> values) {
  const int last = 2 * levels.bound - 1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    float level = levels.of_symbol[symbols[i]];
    if (symbols[i] >= last) level = symbols[i] == last ? *beyond++ : -*beyond++;
    if (apply == Apply::kAssign) values[i] = level;
    if (apply == Apply::kAdd) values[i] += level;
    if (apply == Apply::kSubtract) values[i] -= level;
  }
}

inline void join_pairs(std::span<const std::uint8_t> symbols, std::uint8_t* pairs) {
  for (std::size_t i = 0; i < symbols.size(); i += 2) {
    pairs[i / 2] =
        static_cast<std::uint8_t>(5 * symbols[i] + (i + 1 < symbols.size() ? symbols[i + 1] : 0));
  }
}

inline bool split_pairs(const std::uint8_t* pairs, std::span<std::uint8_t> symbols) {
  for (std::size_t i = 0; i + 1 < symbols.size(); i += 2) {
    symbols[i] = static_cast<std::uint8_t>(pairs[i / 2] / 5);
    symbols[i + 1] = static_cast<std::uint8_t>(pairs[i / 2] % 5);
  }
  if (symbols.size() % 2 == 0) return true;
  const std::uint8_t last = pairs[symbols.size() / 2];
  symbols.back() = static_cast<std::uint8_t>(last / 5);
  return last % 5 == 0;
}

}  // namespace thinwire::entropy::ref
