#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "thinwire/compressors/entropy/dead_zone.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire::entropy {
namespace {

struct Quantised {
  std::vector<std::uint8_t> symbols;
  std::vector<std::uint32_t> excess;
  QuantisedSums sums;
};

Quantised quantised(std::span<const float> values, const DeadZone& zone) {
  Quantised result;
  result.symbols.resize(values.size());
  result.excess.resize(values.size() + 16);
  quantise(values, zone, result.symbols.data(), result.excess.data(), result.sums);
  result.excess.resize(result.sums.excess);
  return result;
}

std::vector<float> heavy_tailed(std::size_t count) {
  std::vector<float> values = testing::normal_values(count, 17);
  for (std::size_t i = 0; i < count; i += 37) values[i] *= 1e3f;
  if (count > 40) values[5] = -1e30f;
  return values;
}

TEST(DeadZone, FollowsItsDefinition) {
  const std::vector<float> values = {0, -0.0f, 0.59f, 0.61f, -0.61f, 1.7f, -14.9f, 15.2f, -40.0f};
  const Quantised q = quantised(values, {.inverse_step = 1, .rounding = 0.4f, .bound = 15});
  EXPECT_EQ(q.symbols, (std::vector<std::uint8_t>{0, 0, 0, 1, 2, 3, 30, 29, 30}));
  EXPECT_EQ(q.excess, (std::vector<std::uint32_t>{0, 0, 25}));
  EXPECT_EQ(q.sums.count, (std::array<std::int64_t, 3>{2, 1, 3}));
  // ⌊256 · −0.39⌋ to zero, twice.
  EXPECT_EQ(q.sums.fraction[0], -99 * 2);
  EXPECT_TRUE(q.sums.finite);
  EXPECT_FALSE(quantised(std::vector<float>(100, std::nanf("")), {}).sums.finite);
  std::vector<float> one_infinite(100, 1.0f);
  one_infinite[3] = -INFINITY;
  EXPECT_FALSE(quantised(one_infinite, {}).sums.finite);
}

class DeadZoneTargets : public ::testing::TestWithParam<std::string> {};

TEST_P(DeadZoneTargets, EqualTheReferenceBitByBit) {
  for (const std::size_t count : {0, 1, 15, 16, 17, 64, 1001}) {
    for (const int bound : {2, 15}) {
      const std::vector<float> values = heavy_tailed(count);
      const DeadZone zone{.inverse_step = 1.7f, .rounding = 0.42f, .bound = bound};
      Levels levels{.bound = bound};
      for (std::size_t s = 0; s < 32; ++s) levels.of_symbol[s] = 0.37f * static_cast<float>(s);
      std::vector<float> beyond(count + 16);
      for (std::size_t i = 0; i < beyond.size(); ++i) beyond[i] = 1.1f * static_cast<float>(i);
      Quantised expected, found;
      std::vector<std::vector<float>> applied[2];
      for (int side = 0; side < 2; ++side) {
        const testing::ScopedTarget target(side == 0 ? kernels::simd_targets().back() : GetParam());
        (side == 0 ? expected : found) = quantised(values, zone);
        for (const Apply apply : {Apply::kAssign, Apply::kAdd, Apply::kSubtract}) {
          std::vector<float> result = values;
          apply_levels(expected.symbols.data(), beyond.data(), levels, apply, result);
          applied[side].push_back(result);
        }
      }
      ASSERT_EQ(found.symbols, expected.symbols);
      ASSERT_EQ(found.excess, expected.excess);
      ASSERT_EQ(found.sums.count, expected.sums.count);
      ASSERT_EQ(found.sums.fraction, expected.sums.fraction);
      ASSERT_EQ(applied[1], applied[0]);
    }
  }
}

TEST_P(DeadZoneTargets, CountEverySymbol) {
  const testing::ScopedTarget target(GetParam());
  std::mt19937 random(31);
  for (const std::size_t count : {0, 1, 100, 4096, 4097, 9000}) {
    std::vector<std::uint8_t> symbols(count);
    std::array<std::uint32_t, 32> expected{};
    for (auto& symbol : symbols) {
      symbol = static_cast<std::uint8_t>(std::min(random() % 32, random() % 32));
      ++expected[symbol];
    }
    ASSERT_EQ(count_symbols(symbols), expected);
  }
}

TEST_P(DeadZoneTargets, PairsComeBack) {
  const testing::ScopedTarget target(GetParam());
  std::mt19937 random(3);
  for (const std::size_t count : {0, 1, 2, 63, 64, 65, 1001}) {
    std::vector<std::uint8_t> symbols(count), pairs((count + 1) / 2), back(count);
    for (auto& symbol : symbols) symbol = static_cast<std::uint8_t>(random() % 5);
    join_pairs(symbols, pairs.data());
    ASSERT_TRUE(split_pairs(pairs.data(), back));
    ASSERT_EQ(back, symbols);
    ASSERT_EQ(at_least(symbols, 3), static_cast<std::size_t>(std::ranges::count_if(
                                        symbols, [](auto s) { return s >= 3; })));
    if (count % 2 == 1) {
      ++pairs.back();
      ASSERT_EQ(split_pairs(pairs.data(), back), pairs.back() % 5 == 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, DeadZoneTargets, ::testing::ValuesIn(kernels::simd_targets()));

}  // namespace
}  // namespace thinwire::entropy
