// The array kernels against their scalar expressions, bit for bit, on every SIMD target.
#include "thinwire/compressors/kernels/float_arrays.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "thinwire/compressors/kernels/simd.h"

namespace thinwire::kernels {
namespace {

std::vector<std::uint32_t> bits_of(std::span<const float> values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

// Of all magnitudes, subnormal ones included.
std::vector<float> numbers(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values;
  while (values.size() < n) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isfinite(value)) values.push_back(value);
  }
  return values;
}

class FloatArrays : public ::testing::TestWithParam<std::tuple<std::string, std::size_t>> {
 protected:
  void SetUp() override { set_simd_target(std::get<0>(GetParam())); }
  void TearDown() override { set_simd_target(""); }
  static std::size_t size() { return std::get<1>(GetParam()); }
};

TEST_P(FloatArrays, GoToTheirPlacesAndBack) {
  const std::size_t n = size();
  const std::vector<float> a = numbers(n, 1), b = numbers(n, 2);
  std::vector<std::uint32_t> places(n);
  std::iota(places.begin(), places.end(), 3u);
  std::shuffle(places.begin(), places.end(), std::mt19937(3));
  for (const float* second : {b.data(), static_cast<const float*>(nullptr)}) {
    std::vector<float> array(n + 5, 7.0f), expected = array, back(n), expected_back(n);
    for (std::size_t i = 0; i < n; ++i) {
      expected[places[i]] = second ? a[i] + 0.9f * b[i] : a[i];
      expected_back[i] = expected[places[i]];
    }
    scatter_scaled(a.data(), second, 0.9f, places, array.data());
    EXPECT_EQ(bits_of(array), bits_of(expected));
    gather(array.data(), places, back.data());
    EXPECT_EQ(bits_of(back), bits_of(expected_back));
  }
}

TEST_P(FloatArrays, EqualTheScalarExpressions) {
  const std::size_t n = size();
  const std::vector<float> a = numbers(n, 1), b = numbers(n, 2);
  std::vector<float> expected(n), out(n);
  for (const float factor : {1.0f, 0.9f, 0.0f, -3.0f}) {
    for (std::size_t i = 0; i < n; ++i) expected[i] = a[i] + factor * b[i];
    EXPECT_EQ(add_scaled(a.data(), b.data(), factor, out), all_finite(expected)) << factor;
    EXPECT_EQ(bits_of(out), bits_of(expected)) << factor;
    std::vector<float> in_place = a;
    add_scaled(in_place.data(), b.data(), factor, in_place);
    EXPECT_EQ(bits_of(in_place), bits_of(expected)) << factor;
  }
  out = a;
  for (std::size_t i = 0; i < n; ++i) expected[i] = a[i] - b[i];
  subtract(out, b.data());
  EXPECT_EQ(bits_of(out), bits_of(expected));
  for (const float divisor : {1.0f, 2.0f, 3.0f, 4.0f, 7.0f, 1024.0f, 0x1p-20f}) {
    out = a;
    for (std::size_t i = 0; i < n; ++i) expected[i] = a[i] / divisor;
    divide(out, divisor);
    EXPECT_EQ(bits_of(out), bits_of(expected)) << divisor;
  }
}

TEST_P(FloatArrays, FindWhatIsNotFiniteAnywhere) {
  std::vector<float> values = numbers(size(), 3);
  EXPECT_TRUE(all_finite(values));
  for (std::size_t i = 0; i < values.size(); ++i) {
    for (const float wrong :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
      const float kept = std::exchange(values[i], wrong);
      EXPECT_FALSE(all_finite(values)) << i;
      values[i] = kept;
    }
  }
}

// Short ones and long ones, at every alignment, and nothing beside them.
TEST_P(FloatArrays, CopiesPastTheCache) {
  for (const std::size_t more : {std::size_t{0}, std::size_t{5000}}) {
    const std::vector<float> values = numbers(size() + more, 3);
    for (std::size_t shift = 0; shift < 17; ++shift) {
      std::vector<float> out(values.size() + 32, -1.0f), expected = out;
      std::ranges::copy(values, expected.begin() + static_cast<std::ptrdiff_t>(shift));
      copy_past_cache(values, out.data() + shift);
      EXPECT_EQ(bits_of(out), bits_of(expected)) << shift;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, FloatArrays,
                         ::testing::Combine(::testing::ValuesIn(simd_targets()),
                                            ::testing::Values(0, 1, 3, 15, 16, 17, 63, 64, 65,
                                                              200)),
                         [](const auto& tested) {
                           return std::get<0>(tested.param) + "_" +
                                  std::to_string(std::get<1>(tested.param));
                         });

}  // namespace
}  // namespace thinwire::kernels
