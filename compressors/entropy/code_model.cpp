#include "thinwire/compressors/entropy/code_model.h"

#include <algorithm>
#include <array>

#include "thinwire/common/error.h"

namespace thinwire::entropy {
namespace {

constexpr int kCodesOfPairs = 5;
constexpr std::uint64_t kOdds = 256;  // what a value of 1 : 1 is
constexpr int kTotalBits = 24;

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
  constexpr std::uint64_t kTotal = std::uint64_t{1} << kTotalBits;
  const std::uint64_t zeros = value_of(model.zeros), decay = value_of(model.decay);
  std::array<std::uint64_t, kMaxSymbols> codes{};
  codes[0] = kTotal * zeros / (zeros + kOdds);
  std::uint64_t rest = kTotal - codes[0];
  for (std::size_t m = 1; m <= model.last; ++m) {
    const std::uint64_t here = m < model.last ? rest * kOdds / (kOdds + decay) : rest;
    rest -= here;
    codes[2 * m - 1] = codes[2 * m] = std::max<std::uint64_t>(here / 2, 1);
  }
  std::array<std::uint32_t, kMaxSymbols> counts{};
  if (!pairs) {
    std::ranges::transform(codes, counts.begin(),
                           [](std::uint64_t count) { return static_cast<std::uint32_t>(count); });
    return weights_of(counts);
  }
  for (std::size_t i = 0; i < kCodesOfPairs; ++i) {
    for (std::size_t j = 0; j < kCodesOfPairs; ++j) {
      if (codes[i] == 0 || codes[j] == 0) continue;
      counts[kCodesOfPairs * i + j] =
          static_cast<std::uint32_t>(std::max<std::uint64_t>(codes[i] * codes[j] >> kTotalBits, 1));
    }
  }
  return weights_of(counts);
}

}  // namespace thinwire::entropy
