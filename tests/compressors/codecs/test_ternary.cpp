#include <gtest/gtest.h>

#include <cmath>

#include "payloads.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/kernels/topk_ref.h"

namespace thinwire {
namespace {

TEST(Ternary, KeepsTheSignsAndTheMeanOfTheLargest) {
  const auto codec = make_codec("ternary(density=0.4)");
  const std::vector<float> x = {0.5f, -3, 1, 2, -0.1f};
  EXPECT_EQ(testing::round_trip(*codec, x), (std::vector<float>{0, -2.5f, 0, 2.5f, 0}));
  const auto payload = testing::compressed(*codec, view_of(std::span(x)));
  EXPECT_EQ(payload.back(), std::byte{1});  // the first of the two is negative
  std::vector<float> sum = x;
  codec->decompress(payload, {}, view_of(std::span(sum)), WriteMode::kAccumulate);
  EXPECT_EQ(sum, (std::vector<float>{0.5f, -5.5f, 1, 4.5f, -0.1f}));
}

TEST(Ternary, TiesGoToTheLowerIndex) {
  const std::vector<float> x = {-1, 1, -1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(testing::round_trip(*make_codec("ternary(density=0.3)"), x),
            (std::vector<float>{-1, 1, -1, 0, 0, 0, 0, 0, 0, 0}));
}

TEST(Ternary, EqualsTheReferenceOnEveryTarget) {
  for (const std::size_t n : {1, 17, 1000, 4099}) {
    const auto x = testing::normal_values(n, 31);
    const std::size_t k = std::max<std::size_t>(1, static_cast<std::size_t>(0.13 * double(n)));
    const auto kept = kernels::ref::select_topk(x, k);
    double sum = 0;
    for (const auto i : kept) sum += std::abs(double{x[i]});
    std::vector<float> expected(n);
    for (const auto i : kept) {
      expected[i] = std::copysign(static_cast<float>(sum / static_cast<double>(k)), x[i]);
    }
    for (const auto& target : kernels::simd_targets()) {
      const testing::ScopedTarget scope(target);
      EXPECT_EQ(testing::round_trip(*make_codec("ternary(density=0.13)"), x), expected)
          << target << " " << n;
    }
  }
}

// ‖x − C(x)‖² = ‖x‖² − k · scale²
TEST(Ternary, RemovesTheEnergyOfItsScale) {
  const auto x = testing::normal_values(5000, 32);
  const auto y = testing::round_trip(*make_codec("ternary(density=0.05)"), x);
  double energy = 0, error = 0, scale = 0, kept = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    energy += double{x[i]} * x[i];
    error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    kept += y[i] != 0;
    scale = std::max(scale, std::abs(double{y[i]}));
  }
  EXPECT_EQ(kept, 250);
  EXPECT_NEAR(error, energy - kept * scale * scale, 1e-5 * energy);
}

TEST(Ternary, BytesAreScaleIndicesAndASignEach) {
  const auto x = testing::normal_values(10000, 33);
  const auto payload =
      testing::compressed(*make_codec("ternary(density=0.01)"), view_of(std::span(x)));
  std::vector<std::byte> indices(max_index_bytes(10000, 100));
  const std::size_t index_bytes = encode_indices(kernels::ref::select_topk(x, 100), 10000, indices);
  EXPECT_EQ(payload.size(), 4 + index_bytes + 13);
}

TEST(Ternary, ScaleMayBeStandardDeviationsOfAllEntries) {
  const auto x = testing::normal_values(5000, 3);
  double sum = 0, squares = 0;
  for (const float value : x) sum += value;
  for (const float value : x) squares += std::pow(value - sum / 5000, 2);
  const auto expected = static_cast<float>(1.5 * std::sqrt(squares / 4999));
  const auto codec = make_codec("ternary(density=0.05, scale=std, alpha=1.5)");
  EXPECT_EQ(codec->spec(), "ternary(density=0.05, scale=std, alpha=1.5)");
  const auto mean = testing::round_trip(*make_codec("ternary(density=0.05)"), x);
  const auto y = testing::round_trip(*codec, x);
  int kept = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(y[i] == 0, mean[i] == 0) << i;
    if (y[i] == 0) continue;
    ASSERT_EQ(y[i], std::copysign(expected, x[i])) << i;
    ++kept;
  }
  EXPECT_EQ(kept, 250);
  // A number that would mean nothing is a mistake.
  EXPECT_THROW(make_codec("ternary(density=0.05, alpha=2)"), InvalidArgument);
  EXPECT_THROW(make_codec("ternary(density=0.05, scale=std, alpha=0)"), InvalidArgument);
  EXPECT_EQ(testing::round_trip(*codec, std::vector<float>{3.0f}), (std::vector<float>{0.0f}));
}

TEST(Ternary, RefusesSignsBeyondTheLastAndWrongLengths) {
  const auto codec = make_codec("ternary(density=0.4)");
  const std::vector<float> x = {0.5f, -3, 1, 2, -0.1f};
  auto payload = testing::compressed(*codec, view_of(std::span(x)));
  std::vector<float> y(5, 7.0f);
  payload.back() |= std::byte{4};
  EXPECT_THROW(codec->decompress(payload, {}, view_of(std::span(y)), WriteMode::kAssign),
               FrameError);
  payload.pop_back();
  EXPECT_THROW(codec->decompress(payload, {}, view_of(std::span(y)), WriteMode::kAssign),
               FrameError);
  EXPECT_EQ(y, std::vector<float>(5, 7.0f));
  EXPECT_THROW(make_codec("ternary(density=0)"), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
