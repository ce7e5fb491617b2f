// Tables of codes that are distributed like rounded Laplace values: a few bytes instead of a weight
// for each symbol, which is what small slices have to spare.
#pragma once

#include <cstdint>
#include <span>

#include "thinwire/compressors/entropy/symbol_table.h"

namespace thinwire::entropy {

// A magnitude is zero with odds of `zeros`, and one that is m or more is above m with odds of
// `decay`; both are values of weights (symbol_table.h) over 256. No magnitude is above `last`.
// Signs are even, and the two codes of a pair independent. Bytes as they travel.
struct CodeModel {
  std::uint8_t zeros = 0, decay = 0, last = 0;
};

// How often magnitudes occur, and what they cost.
struct MagnitudeTotals {
  std::uint64_t zeros = 0, others = 0;
  std::uint64_t above = 0;    // the sum of m − 1 over the others
  std::uint64_t at_last = 0;  // of the largest magnitude
  int last = 0;               // 0: there are no others

  // Of the codes under their best model, nearly.
  FixedBits bits() const;
  CodeModel model() const;
};

// Of codes below 31, or of pairs of codes below 5 (dead_zone.h).
MagnitudeTotals totals_of(std::span<const std::uint32_t, kMaxSymbols> counts, bool pairs);

// In integers, so that all ranks have the same. `last` is from 1 to 15, of pairs to 2, and neither
// of the others is 0.
SymbolWeights weights_of(const CodeModel& model, bool pairs);

}  // namespace thinwire::entropy
