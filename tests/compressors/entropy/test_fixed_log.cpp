#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "thinwire/compressors/entropy/fixed_log.h"

namespace thinwire::entropy {
namespace {

constexpr std::uint64_t kSpread = 0x9E3779B97F4A7C15u;

TEST(FixedLog, OfCountsIsWithinAStepOfTheLogarithm) {
  const auto expect_near = [](std::uint64_t n) {
    const double log2 = static_cast<double>(fixed_log2(n)) / kFixedBit;
    EXPECT_NEAR(log2, std::log2(static_cast<double>(n)), 1.0 / kFixedBit) << n;
  };
  for (std::uint64_t n = 1; n < 70000; ++n) expect_near(n);
  for (std::uint64_t i = 1; i < 20000; ++i) expect_near((i * kSpread >> (i % 60)) | 1);
}

TEST(FixedLog, OfPowersOfTwoIsExactAndNoCountHasLessThanASmallerOne) {
  for (int e = 0; e < 64; ++e) EXPECT_EQ(fixed_log2(std::uint64_t{1} << e), e * kFixedBit);
  for (std::uint64_t n = 1; n < 300000; ++n) EXPECT_LE(fixed_log2(n), fixed_log2(n + 1)) << n;
}

TEST(FixedLog, OfDoublesAndTheInverseAreWithinTheirBounds) {
  for (std::uint64_t i = 1; i < 50000; ++i) {
    const double x = std::ldexp(1 + static_cast<double>(i * kSpread >> 11) * 0x1p-53,
                                static_cast<int>(i % 200) - 100);
    EXPECT_NEAR(log2_of(x), std::log2(x), 1e-6) << x;
    const double octaves = (static_cast<double>(i) - 25000) / 128;
    EXPECT_NEAR(exp2_of(octaves) / std::exp2(octaves), 1, 1e-8) << octaves;
  }
  for (int e = -126; e < 128; ++e) {
    EXPECT_EQ(log2_of(std::ldexp(1, e)), e);
    EXPECT_EQ(exp2_of(e), std::ldexp(1, e));
  }
}

// What ranks of different hosts agree on, and what a GPU must compute, are these bits.
TEST(FixedLog, HasTheSameBitsEverywhere) {
  std::uint64_t hash = 0;
  const auto add = [&](std::uint64_t bits) { hash = std::rotl(hash ^ bits, 27) * kSpread; };
  for (std::uint64_t i = 1; i < 10000; ++i) {
    add(static_cast<std::uint64_t>(fixed_log2(i * i)));
    add(std::bit_cast<std::uint64_t>(log2_of(static_cast<double>(i) / 77)));
    add(std::bit_cast<std::uint64_t>(exp2_of(static_cast<double>(i) / 1024 - 5)));
  }
  EXPECT_EQ(hash, 7008885862902326501u);
}

}  // namespace
}  // namespace thinwire::entropy
