#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "payloads.h"
#include "thinwire/compressors/kernels/sign_planes_ref.h"

namespace thinwire {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class TerngradTargets : public ::testing::TestWithParam<std::string> {};

TEST_P(TerngradTargets, EqualTheReferenceBitByBit) {
  const testing::ScopedTarget target(GetParam());
  const PhiloxStream stream = PhiloxStream::of({.seed = 3, .step = 1, .rank = 2});
  for (const std::size_t n : {1, 2, 15, 16, 17, 63, 127, 128, 513, 1000, 1024, 2048}) {
    // Around 2^32 · 4 elements the counter of the blocks carries into its second word.
    for (const std::uint64_t first :
         {std::uint64_t{0}, std::uint64_t{48}, (std::uint64_t{1} << 36) - 64}) {
      for (const float clip : {0.0f, 0.5f, 2.5f}) {
        for (const float scale : {1.0f, 1e-40f, 1e-25f, 1e38f}) {
          const auto x = testing::normal_values(n, 21, scale);
          std::vector<std::byte> expected(kernels::terngrad_bytes(n)), found(expected.size());
          kernels::ref::terngrad_encode(x.data(), n, clip, stream, first, expected.data());
          kernels::terngrad_encode(x.data(), n, clip, stream, first, found.data());
          ASSERT_EQ(found, expected) << n << " first " << first << " clip " << clip << scale;
          std::vector<float> reference(n), decoded(n);
          kernels::ref::terngrad_decode(expected.data(), n, reference.data());
          kernels::terngrad_decode(expected.data(), n, decoded.data());
          ASSERT_EQ(std::memcmp(decoded.data(), reference.data(), n * sizeof(float)), 0) << n;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, TerngradTargets, ::testing::ValuesIn(kernels::simd_targets()),
                         [](const auto& target) { return target.param; });

TEST(Terngrad, TheLargestIsAlwaysSentAndZeroNever) {
  const auto codec = make_codec("terngrad");
  for (const float scale : {0.3f, 1e-41f, 3e38f}) {
    const std::vector<float> x = {scale, 0, -scale, -0.0f};
    for (std::uint64_t step = 0; step < 300; ++step) {
      ASSERT_EQ(testing::round_trip(*codec, x, {.step = step}), x) << scale;
    }
  }
}

// The frequency of every element's ±s is |x| / s, and neighbours, which share a random word, are
// nearly independent.
TEST(Terngrad, FrequenciesAreTheProbabilities) {
  constexpr std::size_t kNumel = 1 << 18;
  std::vector<float> x(kNumel, -0.3f);
  for (std::size_t i = 0; i < kNumel; i += 1024) x[i] = 1;
  const auto y = testing::round_trip(*make_codec("terngrad"), x);
  for (std::size_t place = 1; place < 5; ++place) {
    double sent = 0, pairs = 0, trials = 0;
    for (std::size_t i = 0; i + 8 < kNumel; i += 4) {
      if (i % 1024 == 0 || i % 1024 > 1000) continue;
      const bool here = y[i + place] != 0, next = y[i + place + 1] != 0;
      ASSERT_TRUE(!here || y[i + place] == -1);
      sent += here;
      pairs += here && next;
      trials += 1;
    }
    EXPECT_NEAR(sent / trials, 0.3, 5 * std::sqrt(0.21 / trials)) << place;
    EXPECT_NEAR(pairs / trials, 0.09, 5 * std::sqrt(0.082 / trials) + 0x1p-8) << place;
  }
}

TEST(Terngrad, DependsOnEveryPartOfTheKey) {
  const auto x = testing::normal_values(1024, 22);
  const auto codec = make_codec("terngrad");
  const auto base = testing::round_trip(*codec, x);
  EXPECT_EQ(testing::round_trip(*codec, x, {}), base);
  for (const RandomKey& key :
       {RandomKey{.seed = 1}, RandomKey{.step = 1}, RandomKey{.layer = 1}, RandomKey{.rank = 1},
        RandomKey{.stage = 1}, RandomKey{.first_element = 1024}}) {
    EXPECT_NE(testing::round_trip(*codec, x, key), base);
  }
  EXPECT_THROW(testing::round_trip(*codec, x, {.first_element = 24}), InvalidArgument);
}

TEST(Terngrad, ClippingLowersTheScaleToMultiplesOfTheRootMeanSquare) {
  std::vector<float> x(64, 1.0f);
  x[5] = -100;
  const double rms = std::sqrt((63 + 1e4) / 64);
  const auto y = testing::round_trip(*make_codec("terngrad(clip=2.5)"), x);
  EXPECT_NEAR(y[5], -2.5 * rms, 1e-4);
  EXPECT_EQ(testing::round_trip(*make_codec("terngrad(clip=100)"), x)[5], -100);
  EXPECT_FALSE(make_codec("terngrad(clip=2.5)")->traits().unbiased);
  EXPECT_TRUE(make_codec("terngrad")->traits().unbiased);
}

TEST(Terngrad, OneBadElementPoisonsItsBucketAlone) {
  std::vector<float> x(192, 2.0f);
  x[70] = kInfinity;
  const auto y = testing::round_trip(*make_codec("terngrad(bucket=64)"), x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i / 64 == 1) {
      EXPECT_TRUE(std::isnan(y[i]));
    } else {
      EXPECT_EQ(y[i], 2);
    }
  }
  x[70] = kNan;
  EXPECT_TRUE(std::isnan(testing::round_trip(*make_codec("terngrad(bucket=64)"), x)[70]));
}

TEST(Terngrad, TwoBitsAnElementAndAScaleABucket) {
  const auto codec = make_codec("terngrad(bucket=128)");
  EXPECT_EQ(codec->max_compressed_bytes(256, DType::kFloat32), 2 * (4u + 32u));
  EXPECT_EQ(codec->max_compressed_bytes(129, DType::kFloat32), 36u + 6u);
}

}  // namespace
}  // namespace thinwire
