#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "thinwire/compressors/kernels/fp8_ref.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire {
namespace {

using kernels::Fp8;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The nearest value with `digits` bits of significand, ties to even, saturating, from the
// definition and in double.
double nearest(double x, int digits, int min_exponent, double largest) {
  if (x == 0) return x;
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(x), min_exponent) - digits + 1);
  return std::copysign(std::min(std::nearbyint(std::abs(x) / ulp) * ulp, largest), x);
}

// Every code of a format, its neighbourhood and the points halfway to the next.
template <Fp8 kFormat>
std::vector<float> interesting_floats() {
  std::vector<float> values;
  for (unsigned code = 0; code <= kernels::kFp8Layout<kFormat>.largest; ++code) {
    const float value = kernels::float_from_fp8<kFormat>(static_cast<std::uint8_t>(code));
    const float next = code == kernels::kFp8Layout<kFormat>.largest
                           ? value * 1.25f
                           : kernels::float_from_fp8<kFormat>(static_cast<std::uint8_t>(code + 1));
    const float middle = value + (next - value) / 2;
    for (const float x :
         {value, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  for (const float x : {1e-30f, 1e30f, 3.4e38f, 1e-45f}) values.push_back(x);
  return values;
}

template <Fp8 kFormat>
void expect_nearest(int digits, int min_exponent, double largest) {
  for (const float x : interesting_floats<kFormat>()) {
    const float found = kernels::float_from_fp8<kFormat>(kernels::fp8_from_float<kFormat>(x));
    ASSERT_EQ(found, static_cast<float>(nearest(x, digits, min_exponent, largest))) << x;
    ASSERT_EQ(std::signbit(found), std::signbit(x));
  }
}

TEST(Fp8Math, RoundsToNearestEvenAndSaturates) {
  expect_nearest<Fp8::kE4M3>(4, -6, 448);
  expect_nearest<Fp8::kE5M2>(3, -14, 57344);
}

// Values of the OCP specification's table.
TEST(Fp8Math, CodesAreThoseOfTheSpecification) {
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE4M3>(448), 0x7E);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE4M3>(0x1p-6f), 0x08);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE4M3>(-0x1p-9f), 0x81);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE4M3>(1), 0x38);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(57344), 0x7B);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(0x1p-14f), 0x04);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(-0x1p-16f), 0x81);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(1), 0x3C);
  EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(kInfinity), 0x7C);
  for (const float special : {kNan, -kNan}) {
    const auto e4m3 = kernels::fp8_from_float<Fp8::kE4M3>(special);
    const auto e5m2 = kernels::fp8_from_float<Fp8::kE5M2>(special);
    EXPECT_TRUE(std::isnan(kernels::float_from_fp8<Fp8::kE4M3>(e4m3)));
    EXPECT_TRUE(std::isnan(kernels::float_from_fp8<Fp8::kE5M2>(e5m2)));
  }
  const auto infinity = kernels::fp8_from_float<Fp8::kE4M3>(-kInfinity);
  EXPECT_TRUE(std::isnan(kernels::float_from_fp8<Fp8::kE4M3>(infinity)));
}

TEST(Fp8Math, EveryFiniteCodeReturnsUnchanged) {
  for (unsigned code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    if ((code & 0x7F) <= 0x7E) {
      EXPECT_EQ(kernels::fp8_from_float<Fp8::kE4M3>(kernels::float_from_fp8<Fp8::kE4M3>(byte)),
                byte);
    }
    if ((code & 0x7F) <= 0x7C) {
      EXPECT_EQ(kernels::fp8_from_float<Fp8::kE5M2>(kernels::float_from_fp8<Fp8::kE5M2>(byte)),
                byte);
    }
  }
}

class Fp8Targets : public ::testing::TestWithParam<std::string> {};

template <Fp8 kFormat>
void expect_reference(const std::vector<float>& x) {
  std::vector<std::byte> expected(kernels::fp8_bytes(x.size())), found(expected.size());
  kernels::ref::fp8_encode<kFormat>(x.data(), x.size(), expected.data());
  kernels::fp8_encode(kFormat, x.data(), x.size(), found.data());
  ASSERT_EQ(found, expected) << x.size();
  ASSERT_TRUE(kernels::fp8_valid(found.data(), x.size()));
  std::vector<float> reference(x.size()), decoded(x.size());
  kernels::ref::fp8_decode<kFormat>(expected.data(), x.size(), reference.data());
  kernels::fp8_decode(kFormat, expected.data(), x.size(), decoded.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(decoded[i]), std::bit_cast<std::uint32_t>(reference[i]))
        << x[i] << " at " << i << " of " << x.size();
  }
}

TEST_P(Fp8Targets, EqualTheReferenceBitByBit) {
  const testing::ScopedTarget target(GetParam());
  std::vector<std::vector<float>> inputs = {interesting_floats<Fp8::kE4M3>(),
                                            interesting_floats<Fp8::kE5M2>()};
  // Every element of these meets one scale: the largest of its block is the format's largest.
  for (std::size_t first = 0; first < inputs[0].size(); first += kernels::kFp8Block) {
    inputs[0][first] = 448;
  }
  for (const std::size_t n : {1, 3, 15, 16, 17, 127, 128, 129, 255, 1000}) {
    inputs.push_back(testing::normal_values(n, 3, 1e-5f));
    inputs.push_back(testing::normal_values(n, 4, 1e-39f));
    inputs.push_back(testing::normal_values(n, 5, 1e37f));
    inputs.push_back(std::vector<float>(n, 0.0f));
    inputs.push_back(testing::normal_values(n, 6));
    inputs.back()[n / 2] = kNan;
    inputs.back()[n - 1] = -kInfinity;
    inputs.push_back(std::vector<float>(n, kInfinity));
  }
  // Whole blocks of which the largest meets every way of rounding at the end of the range.
  for (float x = 1; x < 2; x += 0x1p-8f) inputs.push_back(std::vector(kernels::kFp8Block, x));
  // All bytes decode alike, those that no encoder writes included.
  for (const auto& x : inputs) {
    expect_reference<Fp8::kE4M3>(x);
    expect_reference<Fp8::kE5M2>(x);
  }
  std::vector<std::byte> codes(kernels::fp8_bytes(256));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i - i / 129 - 1);
  codes[0] = codes[129] = std::byte{120};
  std::vector<float> found(256), expected(256);
  kernels::fp8_decode(Fp8::kE5M2, codes.data(), 256, found.data());
  kernels::ref::fp8_decode<Fp8::kE5M2>(codes.data(), 256, expected.data());
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), 1024), 0);
}

INSTANTIATE_TEST_SUITE_P(Simd, Fp8Targets, ::testing::ValuesIn(kernels::simd_targets()),
                         [](const auto& target) { return target.param; });

struct FormatCase {
  const char* spec;
  int range;     // powers of two below the largest magnitude that survive
  double worst;  // relative error of a value well inside the range
};

class Fp8Cast : public ::testing::TestWithParam<FormatCase> {};

TEST_P(Fp8Cast, OneByteAnElementAndOneABlock) {
  const auto codec = make_codec(GetParam().spec);
  EXPECT_EQ(codec->max_compressed_bytes(0, DType::kFloat32), 0u);
  EXPECT_EQ(codec->max_compressed_bytes(1, DType::kFloat32), 2u);
  EXPECT_EQ(codec->max_compressed_bytes(128, DType::kFloat32), 129u);
  EXPECT_EQ(codec->max_compressed_bytes(129, DType::kFloat32), 131u);
  EXPECT_TRUE(codec->traits().fixed_size);
  EXPECT_TRUE(codec->traits().needs_error_feedback);
  EXPECT_FALSE(codec->traits().unbiased);
  EXPECT_EQ(codec->block_size(), 128);
}

TEST_P(Fp8Cast, PowersOfTwoAreExactWithinTheRangeOfTheirBlock) {
  const auto codec = make_codec(GetParam().spec);
  for (const int top : {-100, -17, 0, 1, 60, 127}) {
    std::vector<float> x;
    for (int below = 0; below <= GetParam().range; ++below) {
      x.push_back(std::ldexp(below % 2 ? -1.0f : 1.0f, top - below));
    }
    EXPECT_EQ(testing::round_trip(*codec, x), x) << top;
  }
}

TEST_P(Fp8Cast, KeepsRelativePrecisionAtEveryMagnitude) {
  const auto codec = make_codec(GetParam().spec);
  for (const float scale : {1e-30f, 1e-5f, 1.0f, 1e30f}) {
    const auto x = testing::normal_values(1000, 9, scale);
    const auto decoded = testing::round_trip(*codec, x);
    for (std::size_t first = 0; first < x.size(); first += 128) {
      const std::size_t end = std::min(x.size(), first + 128);
      float largest = 0;
      for (std::size_t i = first; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
      for (std::size_t i = first; i < end; ++i) {
        if (std::abs(x[i]) < largest * 0x1p-13f) continue;
        ASSERT_NEAR(decoded[i] / x[i], 1, GetParam().worst) << i;
      }
    }
  }
}

// A value just below the next power of two needs the larger scale: no scale may make it saturate.
TEST_P(Fp8Cast, TheLargestOfABlockIsRoundedNotCut) {
  const auto codec = make_codec(GetParam().spec);
  for (float x = 1; x < 2; x += 0x1p-8f) {
    EXPECT_NEAR(testing::round_trip(*codec, std::vector{x})[0], x, GetParam().worst * x);
  }
  const float most = std::numeric_limits<float>::max();
  EXPECT_NE(testing::round_trip(*codec, std::vector{most})[0], 0);
}

TEST_P(Fp8Cast, NotFiniteElementsStayAloneAndLeaveTheScaleToTheOthers) {
  const auto codec = make_codec(GetParam().spec);
  const auto decoded =
      testing::round_trip(*codec, std::vector<float>{kNan, 0.25f, kInfinity, -2, -kInfinity, 0});
  EXPECT_TRUE(std::isnan(decoded[0]));
  EXPECT_EQ(decoded[1], 0.25f);
  EXPECT_FALSE(std::isfinite(decoded[2]));
  EXPECT_EQ(decoded[3], -2);
  EXPECT_FALSE(std::isfinite(decoded[4]));
  EXPECT_EQ(decoded[5], 0);
}

TEST_P(Fp8Cast, RefusesScalesThatNoEncoderWrites) {
  const auto codec = make_codec(GetParam().spec);
  auto payload =
      testing::compressed(*codec, view_of(std::span<const float>(testing::normal_values(200, 1))));
  std::vector<float> out(200, 7.0f);
  for (const unsigned scale : {0u, 254u, 255u}) {
    payload[129] = static_cast<std::byte>(scale);  // the second block's
    EXPECT_THROW(codec->decompress(payload, {}, view_of(std::span(out)), WriteMode::kAssign),
                 FrameError);
    EXPECT_EQ(out, std::vector<float>(200, 7.0f));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Fp8Cast,
                         ::testing::Values(FormatCase{"cast(fp8_e4m3)", 17, 0x1p-4},
                                           FormatCase{"cast(fp8_e5m2)", 31, 0x1p-3}),
                         [](const auto& test) { return std::string(test.param.spec + 5, 8); });

}  // namespace
}  // namespace thinwire
