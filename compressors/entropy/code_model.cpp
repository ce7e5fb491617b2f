#include "thinwire/compressors/entropy/code_model.h"

#include <array>

#include "thinwire/common/error.h"

namespace thinwire::entropy {

CountsPrice price_of(std::span<const std::uint32_t, kMaxSymbols> counts, bool pairs) {
  return price_of_counts(
      counts.data(), pairs,
      [&](int symbol) { return n_log2_n(counts[static_cast<std::size_t>(symbol)]); }, n_log2_n);
}

SymbolWeights weights_of(const CodeModel& model, bool pairs) {
  THINWIRE_ASSERT(model.zeros > 0 && model.decay > 0 && model.last > 0 &&
                  model.last <= (pairs ? 2 : 15));
  std::array<std::uint32_t, kMaxSymbols> codes{};
  model_codes(model.zeros, model.decay, model.last, codes.data());
  if (!pairs) return weights_of(codes);
  std::array<std::uint32_t, kMaxSymbols> counts{};
  for (std::size_t s = 0; s < kSymbolsOfPairs; ++s) {
    counts[s] = model_pair(codes[s / kCodesOfPairs], codes[s % kCodesOfPairs]);
  }
  return weights_of(counts);
}

}  // namespace thinwire::entropy
