// Whether numbers are finite, at the speed of memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

namespace thinwire {

// By bits, so that -ffast-math of a caller's build cannot fold it away, and without branches, so
// that compilers use vectors.
inline bool all_finite(std::span<const float> values) {
  std::uint32_t largest = 0;
  for (const float value : values) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

}  // namespace thinwire
