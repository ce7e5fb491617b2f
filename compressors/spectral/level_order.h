// The order of a matrix's elements by their predicted size: those of like size together, which are
// a class of their own for an entropy coder.
//
// The predicted size of an element is the product of its row's and its column's. Levels are
// logarithms of sizes in eighths of an octave, straight between the octaves, as the bits of a float
// hold them; so they need no logarithm, which might differ from host to host.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire::spectral {

// Levels of an element, which is the sum of its row's and its column's, are below this.
inline constexpr std::size_t kLevels = 4096;
inline constexpr std::size_t kLevelsPerOctave = 8;

// Of a number that is not negative and finite; 1 has level 1016.
constexpr std::uint16_t level_of(float size) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(size) >> 20);
}

using LevelCounts = std::array<std::uint32_t, kLevels>;

// How many elements of a matrix have each level.
LevelCounts count_levels(std::span<const std::uint16_t> rows,
                         std::span<const std::uint16_t> columns);

// The element's place in the order: descending levels, and row by row within a level. places has
// rows · columns elements, fewer than 2^32.
void order_by_level(std::span<const std::uint16_t> rows, std::span<const std::uint16_t> columns,
                    std::span<std::uint32_t> places);

}  // namespace thinwire::spectral
