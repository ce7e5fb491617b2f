#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "payloads.h"
#include "thinwire/compressors/kernels/sign_planes_ref.h"

namespace thinwire {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class OnebitTargets : public ::testing::TestWithParam<std::string> {};

TEST_P(OnebitTargets, EqualTheReferenceBitByBit) {
  const testing::ScopedTarget target(GetParam());
  for (const std::size_t n : {1, 2, 7, 15, 16, 17, 31, 63, 64, 65, 1000, 1024}) {
    for (const int kind : {0, 1, 2, 3, 4}) {
      auto x = testing::normal_values(n, 11, kind == 1 ? 1e38f : 1.0f);
      if (kind == 2) x[n / 2] = kNan;
      if (kind == 3) x[n - 1] = -kInfinity;
      if (kind == 4) x.assign(n, -0.0f);
      std::vector<std::byte> expected(kernels::onebit_bytes(n)), found(expected.size());
      kernels::ref::onebit_encode(x.data(), n, expected.data());
      kernels::onebit_encode(x.data(), n, found.data());
      ASSERT_EQ(found, expected) << n << " kind " << kind;
      std::vector<float> reference(n), decoded(n);
      kernels::ref::onebit_decode(expected.data(), n, reference.data());
      kernels::onebit_decode(expected.data(), n, decoded.data());
      ASSERT_EQ(std::memcmp(decoded.data(), reference.data(), n * sizeof(float)), 0) << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, OnebitTargets, ::testing::ValuesIn(kernels::simd_targets()),
                         [](const auto& target) { return target.param; });

TEST(Onebit, PayloadIsTwoMeansAndAPlaneOfSigns) {
  const std::vector<float> x = {1, 3, -2, -4, 0, -0.0f, -3, 4};
  const auto payload = testing::compressed(*make_codec("onebit"), view_of(std::span(x)));
  ASSERT_EQ(payload.size(), 9u);
  float means[2];
  std::memcpy(means, payload.data(), sizeof means);
  EXPECT_EQ(means[0], 1.6f);  // zeros of either sign count as not negative
  EXPECT_EQ(means[1], -3.0f);
  EXPECT_EQ(std::to_integer<int>(payload[8]), 0b01001100);
  EXPECT_EQ(testing::round_trip(*make_codec("onebit"), x),
            (std::vector<float>{1.6f, 1.6f, -3, -3, 1.6f, 1.6f, -3, 1.6f}));
}

TEST(Onebit, BucketsHaveMeansOfTheirOwn) {
  std::vector<float> x(130, 5.0f);
  std::fill(x.begin() + 64, x.begin() + 128, -2.0f);
  x[128] = 1;
  x[129] = -7;
  const auto codec = make_codec("onebit(bucket=64)");
  EXPECT_EQ(codec->max_compressed_bytes(130, DType::kFloat32), 16u + 16u + 9u);
  EXPECT_EQ(testing::round_trip(*codec, x), x);
  EXPECT_THROW(make_codec("onebit(bucket=100)"), InvalidArgument);
}

// The error that is left when both groups are replaced by their means.
TEST(Onebit, ErrorIsThatOfTheBestTwoLevels) {
  const auto x = testing::normal_values(1024, 12);
  const auto y = testing::round_trip(*make_codec("onebit"), x);
  double energy = 0, error = 0, sums[2] = {}, counts[2] = {};
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    energy += value * value;
    error += (value - y[i]) * (value - y[i]);
    sums[value < 0] += value;
    counts[value < 0] += 1;
  }
  const double best = energy - sums[0] * sums[0] / counts[0] - sums[1] * sums[1] / counts[1];
  EXPECT_NEAR(error, best, 1e-5 * energy);
}

TEST(Onebit, SumsThatOverflowStillGiveFiniteMeans) {
  const std::vector<float> x(64, 3e38f);
  EXPECT_EQ(testing::round_trip(*make_codec("onebit"), x), x);
}

}  // namespace
}  // namespace thinwire
