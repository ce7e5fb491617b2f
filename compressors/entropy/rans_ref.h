// One group of symbols at a time, in plain C++: the oracle of rans_cpu.cpp, and what the ends of
// segments use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "thinwire/compressors/entropy/rans.h"

namespace thinwire::entropy::ref {

inline constexpr std::size_t kWordBytes = 2;

// Encodes symbols[0 … count − 1] of lanes 0 … count − 1; `out` has room for `count` words.
inline std::byte* encode_group(const SymbolTable& table, const std::uint8_t* symbols,
                               std::size_t count, std::uint32_t* states, std::byte* out) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t packed = table.packed[symbols[i]];
    const std::uint32_t frequency = packed >> 14 & (kTableTotal - 1);
    const std::uint32_t start = packed & (kTableTotal - 1);
    std::uint32_t x = states[i];
    if (x >> (31 - kTableBits) >= frequency) {
      const auto word = static_cast<std::uint16_t>(x);
      std::memcpy(out, &word, kWordBytes);
      out += kWordBytes;
      x >>= 16;
    }
    const auto quotient = static_cast<std::uint32_t>(
        (std::uint64_t{2 * x} * table.reciprocal[symbols[i]]) >> 32 >> (packed >> 28));
    states[i] = x + start + quotient * (kTableTotal - frequency);
  }
  return out;
}

// The symbol of a slot: the largest s with start(s) ≤ slot.
inline std::uint8_t symbol_of(const SymbolTable& table, std::uint32_t slot) {
  std::size_t s = 0;
  for (std::size_t half = kMaxSymbols / 2; half > 0; half /= 2) {
    if (slot >= table.start[s + half]) s += half;
  }
  return static_cast<std::uint8_t>(s);
}

// Decodes symbols of lanes 0 … count − 1, whose words lie right before `in`. Returns where they
// begin; null where that is before `begin`.
inline const std::byte* decode_group(const SymbolTable& table, std::uint8_t* symbols,
                                     std::size_t count, std::uint32_t* states,
                                     const std::byte* begin, const std::byte* in) {
  std::size_t words = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t slot = states[i] & (kTableTotal - 1);
    symbols[i] = symbol_of(table, slot);
    const std::uint32_t packed = table.packed[symbols[i]];
    states[i] = (packed >> 14 & (kTableTotal - 1)) * (states[i] >> kTableBits) + slot -
                (packed & (kTableTotal - 1));
    words += states[i] < kStateLow ? 1 : 0;
  }
  if (static_cast<std::size_t>(in - begin) < words * kWordBytes) return nullptr;
  in -= words * kWordBytes;
  const std::byte* next = in;
  for (std::size_t i = 0; i < count; ++i) {
    if (states[i] >= kStateLow) continue;
    std::uint16_t word;
    std::memcpy(&word, next, kWordBytes);
    next += kWordBytes;
    states[i] = states[i] << 16 | word;
  }
  return in;
}

}  // namespace thinwire::entropy::ref
