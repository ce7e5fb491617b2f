// The probabilities under which the entropy coder writes the symbols of one class of elements.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/compressors/entropy/fixed_log.h"
#include "thinwire/compressors/entropy/table_math.h"

namespace thinwire::entropy {

// Weights are the form in which a table travels: one byte a symbol, 0 for one that does not occur,
// else a number with five significant bits,
//
//   weight w stands for (16 + (w − 1) mod 16) · 2^⌊(w − 1) / 16⌋
//
// which costs 1.5e-4 nats a symbol against exact frequencies.
using SymbolWeights = std::array<std::uint8_t, kMaxSymbols>;

// The weights of a histogram: none for symbols that do not occur. Sets all 32.
SymbolWeights weights_of(std::span<const std::uint32_t, kMaxSymbols> counts);

// n · log2 n of a count up to 2^40, with the logarithm of fixed_log2(); 0 for 0.
FixedBits n_log2_n(std::uint64_t count);

// Frequencies derived from weights in integers, so that all ranks hold the same. Value type.
class SymbolTable {
 public:
  // At least one of the weights, at most kMaxSymbols of them, must not be 0.
  explicit SymbolTable(std::span<const std::uint8_t> weights);

  // The largest symbol that occurs; 0 … kMaxSymbols − 1.
  int last() const { return last_; }
  // Whether no other symbol occurs; it then takes no bits.
  bool constant() const { return frequency(last_) == kTableTotal; }
  std::uint32_t frequency(int symbol) const {
    return start[static_cast<std::size_t>(symbol) + 1] - start[static_cast<std::size_t>(symbol)];
  }
  // Bits that symbols of such a histogram take; infinite where one of them has no frequency.
  double bits(std::span<const std::uint32_t, kMaxSymbols> counts) const;

  // For the kernels, 64-byte aligned. start[s] is the sum of the frequencies before s, kTableTotal
  // past the last symbol; the 16 further entries let searches load at an offset.
  alignas(64) std::array<std::uint32_t, kMaxSymbols + 16> start;
  // shift << 28 | frequency << 14 | start, where ⌈2^(31 + shift) / frequency⌉ is `reciprocal` and
  // x / frequency == (2x · reciprocal) >> (32 + shift) for every x < 2^31.
  alignas(64) std::array<std::uint32_t, kMaxSymbols> packed;
  alignas(64) std::array<std::uint32_t, kMaxSymbols> reciprocal;

 private:
  int last_ = 0;
};

}  // namespace thinwire::entropy
