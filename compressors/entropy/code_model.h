// Tables of codes that are distributed like rounded Laplace values: a few bytes instead of a weight
// for each symbol, which is what small slices have to spare.
#pragma once

#include <cstdint>
#include <span>

#include "thinwire/compressors/entropy/price_math.h"
#include "thinwire/compressors/entropy/symbol_table.h"

namespace thinwire::entropy {

// What counts take, with the fast logarithms of n_log2_n().
CountsPrice price_of(std::span<const std::uint32_t, kMaxSymbols> counts, bool pairs);

// In integers, so that all ranks have the same. `last` is from 1 to 15, of pairs to 2, and neither
// of the others is 0.
SymbolWeights weights_of(const CodeModel& model, bool pairs);

}  // namespace thinwire::entropy
