#include "thinwire/compressors/entropy/code_model.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

namespace thinwire::entropy {
namespace {

using Counts = std::array<std::uint32_t, kMaxSymbols>;

// Codes of Laplace values of which this many steps are the mean.
Counts laplace_codes(double mean, int bound, bool pairs, unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> size(1 / mean);
  const auto draw = [&] {
    const int m = std::min(bound, static_cast<int>(size(random) + 0.4));
    return m == 0 ? 0 : 2 * m - static_cast<int>(random() % 2);
  };
  Counts counts{};
  for (int i = 0; i < 20000; ++i) {
    const int code = draw();
    ++counts[static_cast<std::size_t>(pairs ? 5 * code + draw() : code)];
  }
  return counts;
}

double entropy_of(const Counts& counts) {
  double bits = 0;
  for (const std::uint32_t count : counts) {
    if (count > 0) bits -= count * std::log2(count / 20000.0);
  }
  return bits;
}

TEST(CodeModel, LaplaceCodesTakeTheirEntropy) {
  for (const bool pairs : {false, true}) {
    for (const double mean : {0.1, 0.2, 0.5, 1.0, 3.0, 10.0}) {
      if (pairs && mean > 0.5) continue;
      const Counts counts = laplace_codes(mean, pairs ? 2 : 15, pairs, 1);
      const MagnitudeTotals totals = totals_of_counts(counts.data(), pairs);
      const double bits = SymbolTable(weights_of(model_of(totals), pairs)).bits(counts);
      EXPECT_LT(bits, 1.01 * entropy_of(counts) + 200) << mean << (pairs ? " pairs" : "");
      const FixedBits found = bits_of_magnitudes(totals, n_log2_n);
      EXPECT_EQ(found, bits_of_magnitudes(totals, CountLog()));
      EXPECT_NEAR(static_cast<double>(found) / kFixedBit, bits, 0.02 * bits + 100)
          << mean << (pairs ? " pairs" : "");
    }
  }
}

TEST(CodeModel, EveryCodeUpToTheLastHasAWeightAndNoOther) {
  for (const std::uint8_t zeros : {1, 100, 255}) {
    for (const std::uint8_t decay : {1, 100, 255}) {
      for (const std::uint8_t last : {1, 2, 7, 15}) {
        for (const bool pairs : {false, true}) {
          if (pairs && last > 2) continue;
          const SymbolWeights weights = weights_of({zeros, decay, last}, pairs);
          for (int s = 0; s < kMaxSymbols; ++s) {
            const int most = 2 * last;
            const bool occurs = pairs ? s < 25 && s / 5 <= most && s % 5 <= most : s <= most;
            EXPECT_EQ(weights[static_cast<std::size_t>(s)] > 0, occurs) << s;
          }
        }
      }
    }
  }
}

// What all ranks derive must not change from one machine or release to the next.
TEST(CodeModel, WeightsAreTheseNumbers) {
  const SymbolWeights codes = weights_of({.zeros = 90, .decay = 40, .last = 4}, false);
  const SymbolWeights pairs = weights_of({.zeros = 90, .decay = 40, .last = 2}, true);
  const auto first = [](const SymbolWeights& weights, std::size_t count) {
    return std::vector<int>(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(count));
  };
  EXPECT_EQ(first(codes, 9), (std::vector<int>{248, 198, 198, 168, 168, 137, 137, 114, 114}));
  EXPECT_EQ(first(pairs, 6), (std::vector<int>{242, 193, 193, 168, 168, 193}));
}

TEST(CodeModel, TotalsCountMagnitudes) {
  Counts counts{};
  counts[0] = 10;
  counts[1] = 3;
  counts[2] = 2;
  counts[6] = 4;
  const MagnitudeTotals totals = totals_of_counts(counts.data(), false);
  EXPECT_EQ(totals.zeros, 10u);
  EXPECT_EQ(totals.others, 9u);
  EXPECT_EQ(totals.above, 8u);
  EXPECT_EQ(totals.at_last, 4u);
  EXPECT_EQ(totals.last, 3);
  Counts of_pairs{};
  of_pairs[5 * 3 + 0] = 7;  // +2 and 0
  of_pairs[0] = 1;
  const MagnitudeTotals both = totals_of_counts(of_pairs.data(), true);
  EXPECT_EQ(both.zeros, 9u);
  EXPECT_EQ(both.others, 7u);
  EXPECT_EQ(both.above, 7u);
  EXPECT_EQ(both.last, 2);
}

}  // namespace
}  // namespace thinwire::entropy
