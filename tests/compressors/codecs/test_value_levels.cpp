#include "thinwire/compressors/codecs/value_levels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

std::vector<std::byte> encoded(const std::vector<float>& values) {
  std::vector<std::byte> out(max_levels_bytes(values.size()));
  out.resize(encode_levels(values, out));
  return out;
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
    for (const unsigned levels : {1u, 2u, 5u, 32u}) {
      std::vector<float> values(count);
      for (float& value : values) value = static_cast<float>(random() % levels) - 7.25f;
      values[0] = std::numeric_limits<float>::quiet_NaN();
      if (count > 1 && levels == 32) values[0] = values[1];
      const auto payload = encoded(values);
      ASSERT_FALSE(payload.empty());
      std::vector<float> decoded(count);
      decode_levels(payload, decoded);
      for (std::size_t i = 0; i < count; ++i) {
        EXPECT_EQ(std::bit_cast<std::uint32_t>(decoded[i]),
                  std::bit_cast<std::uint32_t>(values[i]));
      }
    }
  }
  std::vector<float> many(33);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<float>(i);
  EXPECT_TRUE(encoded(many).empty()) << "33 levels";
  EXPECT_TRUE(encoded({}).empty());
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
  const auto payload = encoded(values);
  std::vector<float> decoded(values.size());
  const auto refused = [&](std::vector<std::byte> damaged) {
    EXPECT_THROW(decode_levels(damaged, decoded), FrameError);
  };
  refused({});
  refused({payload.begin(), payload.end() - 1});
  for (const int count : {0, 33, 255}) {
    auto damaged = payload;
    damaged[0] = static_cast<std::byte>(count);
    refused(damaged);
  }
  auto unsorted = payload;
  std::swap_ranges(unsorted.begin() + 1, unsorted.begin() + 5, unsorted.begin() + 5);
  refused(unsorted);
  auto longer = payload;
  longer.push_back(std::byte{0});
  refused(longer);
  auto weightless = payload;
  weightless[1 + 4 * static_cast<std::size_t>(payload[0])] = std::byte{0};
  refused(weightless);
  refused({std::byte{1}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0}});
}

}  // namespace
}  // namespace thinwire
