#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "payloads.h"
#include "thinwire/compressors/kernels/elementwise.h"

namespace thinwire {
namespace {

using testing::Tensor;

// The nearest value of a binary format with `digits` bits of significand, ties to even, from the
// definition and in double.
double nearest(double x, int digits, int min_exponent, double largest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), min_exponent);
  const double ulp = std::ldexp(1.0, exponent - digits + 1);
  const double rounded = std::nearbyint(x / ulp) * ulp;
  return std::abs(rounded) > largest ? std::copysign(INFINITY, x) : rounded;
}

std::vector<float> interesting_floats() {
  std::vector<float> values;
  std::mt19937 generator(31);
  for (int i = 0; i < 200000; ++i)
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(generator())));
  // Around float16: normal range, denormals, every tie, the overflow threshold.
  for (std::uint32_t half = 0; half < 0x7C00; ++half) {
    const float value = kernels::float_from_half(static_cast<std::uint16_t>(half));
    const float next =
        half == 0x7BFF ? 65536.0f : kernels::float_from_half(static_cast<std::uint16_t>(half + 1));
    const float middle = value + (next - value) / 2;
    for (const float x :
         {value, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  for (const float x : {INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 3.4e38f, 1e-45f}) {
    values.push_back(x);
  }
  return values;
}

TEST(HalfMath, RoundsToNearestEven) {
  for (const float x : interesting_floats()) {
    const float half = kernels::float_from_half(kernels::half_from_float(x));
    const float bfloat = kernels::float_from_bfloat(kernels::bfloat_from_float(x));
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(half) && std::isnan(bfloat));
      continue;
    }
    ASSERT_EQ(half, static_cast<float>(nearest(x, 11, -14, 65504))) << x;
    ASSERT_EQ(bfloat, static_cast<float>(nearest(x, 8, -126, 0x1.FEp127))) << x;
    ASSERT_EQ(std::signbit(half), std::signbit(x));
  }
}

TEST(HalfMath, EveryHalfReturnsUnchanged) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const bool half_nan = (half & 0x7FFF) > 0x7C00;
    EXPECT_EQ(kernels::half_from_float(kernels::float_from_half(half)),
              half_nan ? half | 0x200 : half);
    const bool bfloat_nan = (half & 0x7FFF) > 0x7F80;
    EXPECT_EQ(kernels::bfloat_from_float(kernels::float_from_bfloat(half)),
              bfloat_nan ? half | 0x40 : half);
  }
}

class ConvertTargets : public ::testing::TestWithParam<std::string> {};

TEST_P(ConvertTargets, EqualTheReferenceBitByBit) {
  const testing::ScopedTarget target(GetParam());
  const auto values = interesting_floats();
  for (const DType dtype : testing::kAllDTypes) {
    for (const std::size_t misalignment : {0, 1}) {
      Tensor expected(dtype, values, misalignment), found(dtype, values.size(), misalignment);
      kernels::store_floats(dtype, found.data(), 0, values.size(), values.data(),
                            WriteMode::kAssign);
      ASSERT_EQ(expected.bytes(), found.bytes()) << name_of(dtype);
      std::vector<float> loaded(values.size());
      kernels::load_floats(dtype, found.data(), 0, values.size(), loaded.data());
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(loaded[i]), std::bit_cast<std::uint32_t>(found[i]))
            << name_of(dtype) << " " << values[i];
      }
    }
  }
}

TEST_P(ConvertTargets, EveryHalfLoadsAsTheReferenceDoes) {
  const testing::ScopedTarget target(GetParam());
  std::vector<std::uint16_t> halves(0x10000);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> loaded(halves.size());
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    kernels::load_floats(dtype, halves.data(), 0, halves.size(), loaded.data());
    for (std::size_t i = 0; i < halves.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(loaded[i]),
                std::bit_cast<std::uint32_t>(kernels::ref::load(dtype, halves.data(), i)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, ConvertTargets, ::testing::ValuesIn(kernels::simd_targets()),
                         [](const auto& target) { return target.param; });

TEST(Cast, SpecIsPositionalOrNamed) {
  EXPECT_EQ(make_codec("cast(fp16)")->spec(), "cast(format=fp16)");
  EXPECT_EQ(make_codec("cast(format=bf16)")->spec(), "cast(format=bf16)");
  EXPECT_THROW(make_codec("cast(fp12)"), InvalidArgument);
}

TEST(Cast, TwoBytesAnElementAndTheValuesOfTheFormat) {
  const auto values = testing::normal_values(1025, 37, 100.0f);
  for (const char* spec : {"cast(fp16)", "cast(bf16)"}) {
    const auto codec = make_codec(spec);
    EXPECT_EQ(codec->max_compressed_bytes(1025, DType::kFloat32), 2050u);
    const DType narrow = codec->spec() == "cast(format=fp16)" ? DType::kFloat16 : DType::kBFloat16;
    const Tensor expected(narrow, values);
    for (const DType dtype : testing::kAllDTypes) {
      const Tensor input(dtype, values, 3);
      const auto payload = testing::compressed(*codec, input.view());
      Tensor out(dtype, values.size(), 1), sum(dtype, values, 1);
      codec->decompress(payload, {}, out.view(), WriteMode::kAssign);
      codec->decompress(payload, {}, sum.view(), WriteMode::kAccumulate);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const Tensor once(narrow, std::vector<float>{input[i]});
        ASSERT_EQ(out[i], Tensor(dtype, std::vector<float>{once[0]})[0]) << spec << name_of(dtype);
        ASSERT_EQ(sum[i], Tensor(dtype, std::vector<float>{input[i] + once[0]})[0]);
      }
    }
  }
}

TEST(Cast, OverflowOfFloat16IsInfinite) {
  const auto decoded = testing::round_trip(*make_codec("cast(fp16)"),
                                           std::vector<float>{65504, 65519, 65520, -1e30f, NAN});
  EXPECT_EQ(decoded[0], 65504);
  EXPECT_EQ(decoded[1], 65504);
  EXPECT_EQ(decoded[2], INFINITY);
  EXPECT_EQ(decoded[3], -INFINITY);
  EXPECT_TRUE(std::isnan(decoded[4]));
}

}  // namespace
}  // namespace thinwire
