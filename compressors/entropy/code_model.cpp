#include "thinwire/compressors/entropy/code_model.h"

#include <algorithm>
#include <array>

#include "thinwire/common/error.h"

namespace thinwire::entropy {
namespace {

// Bits of telling apart events of two kinds.
FixedBits bits_of_two(std::uint64_t a, std::uint64_t b) {
  return n_log2_n(a + b) - n_log2_n(a) - n_log2_n(b);
}

std::uint8_t odds_of(std::uint64_t a, std::uint64_t b) {
  return nearest_weight(b > 0 ? (kOdds * a + b / 2) / b : ~std::uint64_t{0});
}

}  // namespace

FixedBits MagnitudeTotals::bits() const {
  return bits_of_two(zeros, others) + static_cast<FixedBits>(others) * kFixedBit +
         bits_of_two(above, others - at_last);
}

CodeModel MagnitudeTotals::model() const {
  return {.zeros = odds_of(zeros, others),
          .decay = odds_of(above, others - at_last),
          .last = static_cast<std::uint8_t>(last)};
}

MagnitudeTotals totals_of(std::span<const std::uint32_t, kMaxSymbols> counts, bool pairs) {
  std::array<std::uint64_t, kMaxSymbols> codes{};
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (!pairs) {
      codes[s] += counts[s];
    } else if (counts[s] > 0) {
      codes[s / kCodesOfPairs] += counts[s];
      codes[s % kCodesOfPairs] += counts[s];
    }
  }
  MagnitudeTotals totals{.zeros = codes[0]};
  for (std::size_t m = 1; 2 * m < codes.size(); ++m) {
    const std::uint64_t count = codes[2 * m - 1] + codes[2 * m];
    if (count == 0) continue;
    totals.others += count;
    totals.above += (m - 1) * count;
    totals.at_last = count;
    totals.last = static_cast<int>(m);
  }
  return totals;
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
