#include "thinwire/compressors/codecs/value_levels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

std::vector<std::byte> encoded(const std::vector<float>& values,
                               const std::vector<std::uint32_t>& ends = {}) {
  std::vector<std::byte> out(
      max_levels_bytes(values.size(), std::max<std::size_t>(1, ends.size())));
  out.resize(encode_levels(values, ends, out));
  return out;
}

void expect_back(const std::vector<std::byte>& payload, const std::vector<float>& values) {
  std::vector<float> decoded(values.size());
  decode_levels(payload, decoded);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(decoded[i]), std::bit_cast<std::uint32_t>(values[i]));
  }
}

// What top-k keeps: magnitudes above a threshold, thinning out, of either sign.
std::vector<float> kept_values(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<float> above(4);
  std::vector<float> values(count);
  for (float& value : values) value = (random() % 2 ? 1.0f : -1.0f) * (1 + above(random));
  return values;
}

TEST(ValueLevels, ComeBackBitForBit) {
  std::mt19937 random(3);
  for (const std::size_t count : {1u, 2u, 7u, 300u, 5000u, 70000u}) {
    for (const unsigned levels : {1u, 2u, 5u, 16u}) {
      std::vector<float> values(count);
      for (float& value : values) {
        value = (random() % 2 ? 1.0f : -1.0f) * static_cast<float>(random() % levels);
      }
      if (levels < 16) values[0] = std::numeric_limits<float>::quiet_NaN();
      const auto payload = encoded(values);
      ASSERT_FALSE(payload.empty());
      expect_back(payload, values);
    }
  }
  std::vector<float> many(17);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<float>(i);
  EXPECT_TRUE(encoded(many).empty()) << "17 levels";
  expect_back(encoded(many, {1, 17}), many);
  EXPECT_TRUE(encoded({}).empty());
}

// Layers of other sizes than each other's, as an owner of ranges gets them.
TEST(ValueLevels, PartsHaveLevelsOfTheirOwnAndTakeNoMoreBits) {
  std::vector<float> together;
  std::vector<std::uint32_t> ends;
  std::size_t alone = 0;
  for (unsigned part = 0; part < 5; ++part) {
    std::vector<float> values = kept_values(3000, part);
    for (float& value : values) value *= std::pow(10.0f, static_cast<float>(part) - 4);
    round_to_levels(values);
    alone += encoded(values).size();
    together.insert(together.end(), values.begin(), values.end());
    ends.push_back(static_cast<std::uint32_t>(together.size()));
  }
  EXPECT_TRUE(encoded(together).empty()) << "as one part";
  const auto payload = encoded(together, ends);
  expect_back(payload, together);
  EXPECT_LE(payload.size(), alone);
}

TEST(ValueLevels, RoundedValuesTakeAboutTwoBitsAndLoseLittle) {
  const std::vector<float> exact = kept_values(20000, 1);
  std::vector<float> values = exact;
  round_to_levels(values);
  const double bits = 8.0 * static_cast<double>(encoded(values).size()) / 20000;
  EXPECT_LT(bits, 2.1);
  EXPECT_GT(bits, 1.8);
  double lost = 0, energy = 0, of_signs = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(std::signbit(values[i]), std::signbit(exact[i]));
    lost += std::pow(double{exact[i]} - double{values[i]}, 2);
    energy += std::pow(double{exact[i]}, 2);
    of_signs += std::pow(std::fabs(double{exact[i]}) - 1.25, 2);
  }
  EXPECT_LT(lost / energy, 0.01);
  EXPECT_LT(lost, 0.2 * of_signs) << "one level for all magnitudes";
}

TEST(ValueLevels, ZerosStayAndWhatIsNotFiniteBecomesNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0, -0.0f, 3, -3, kInfinity, std::nanf(""), 9};
  round_to_levels(values);
  EXPECT_EQ(values[0], 0);
  EXPECT_FALSE(std::signbit(values[1]));
  EXPECT_EQ(values[2], -values[3]);
  EXPECT_TRUE(std::isnan(values[4]) && std::isnan(values[5]));
  EXPECT_TRUE(std::isfinite(values[6]) && values[6] > values[2]);
  const std::set<float> levels(values.begin(), values.begin() + 4);
  EXPECT_EQ(levels.size(), 3u);
}

TEST(ValueLevels, DamageIsRefused) {
  std::vector<float> values = kept_values(400, 2);
  round_to_levels(values);
  const auto payload = encoded(values, {100, 400});
  std::vector<float> decoded(values.size());
  const auto refused = [&](std::vector<std::byte> damaged) {
    EXPECT_THROW(decode_levels(damaged, decoded), FrameError);
  };
  const auto changed = [&](std::size_t at, int byte) {
    auto damaged = payload;
    damaged[at] = static_cast<std::byte>(byte);
    return damaged;
  };
  for (std::size_t size = 0; size < payload.size(); ++size) {
    refused({payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(size)});
  }
  for (const int count : {0, 1, 3, 255}) refused(changed(0, count));
  for (const int count : {0, 17, 255}) refused(changed(2, count));
  refused(changed(6, 0xFF));  // the first level gets a sign
  auto unsorted = payload;
  std::swap_ranges(unsorted.begin() + 3, unsorted.begin() + 7, unsorted.begin() + 7);
  refused(unsorted);
  auto longer = payload;
  longer.push_back(std::byte{0});
  refused(longer);
  const std::size_t own = 3 + 4 * static_cast<std::size_t>(payload[2]);
  refused(changed(own, 0));      // a part without values
  refused(changed(own + 1, 2));  // one with more than there are
  decoded.resize(1);
  const auto one = encoded({1.5f});
  expect_back(one, {1.5f});
  auto weightless = one;
  weightless[one.size() - 2] = std::byte{0};
  refused(weightless);
}

}  // namespace
}  // namespace thinwire
