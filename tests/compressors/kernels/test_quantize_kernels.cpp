// Every SIMD target against the scalar reference, bit for bit.
#include <gtest/gtest.h>

#include "thinwire/compressors/kernels/quantize_ref.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire {
namespace {

using kernels::Norm;
using kernels::QuantizeConfig;
using testing::Tensor;

constexpr Norm kNorms[] = {Norm::kMinMax, Norm::kLinf, Norm::kL2};

class QuantizeTargets : public ::testing::TestWithParam<std::string> {};

// Encodes and decodes with the reference and the target, and compares all bytes.
void expect_equal_to_reference(const QuantizeConfig& config, DType dtype,
                               std::span<const float> values, std::size_t misalignment) {
  SCOPED_TRACE(concat("bits ", config.bits, " bucket ", config.bucket, " norm ",
                      static_cast<int>(config.norm), " stochastic ", config.stochastic, " dtype ",
                      name_of(dtype), " numel ", values.size(), " misaligned ", misalignment));
  const auto numel = static_cast<std::int64_t>(values.size());
  const auto stream = PhiloxStream::of({.seed = 7, .step = 3, .layer = 1});
  constexpr std::uint64_t kFirst = 5;  // not at the start of a block of random words
  const Tensor input(dtype, values, misalignment);
  const std::size_t bytes = kernels::quantized_bytes(config, numel);
  std::vector<std::byte> expected(bytes + 64, std::byte{0xAB}), found = expected;
  Tensor expected_values(dtype, values, misalignment), found_values(dtype, values, misalignment);
  const auto* in = input.data();
  kernels::ref::quantize(config, dtype, in, numel, stream, kFirst, expected.data() + misalignment,
                         expected_values.data());
  kernels::quantize(config, dtype, in, numel, stream, kFirst, found.data() + misalignment,
                    found_values.data());
  ASSERT_EQ(expected, found);
  ASSERT_EQ(expected_values.bytes(), found_values.bytes());

  for (const WriteMode mode : {WriteMode::kAssign, WriteMode::kAccumulate}) {
    Tensor a(dtype, values, misalignment), b(dtype, values, misalignment);
    kernels::ref::dequantize(config, expected.data() + misalignment, dtype, a.data(), numel, mode);
    kernels::dequantize(config, expected.data() + misalignment, dtype, b.data(), numel, mode);
    ASSERT_EQ(a.bytes(), b.bytes());
    if (mode == WriteMode::kAssign) {
      ASSERT_EQ(a.bytes(), found_values.bytes());
    }
  }
}

TEST_P(QuantizeTargets, AllWidthsNormsSizesAndAlignments) {
  const testing::ScopedTarget target(GetParam());
  const auto values = testing::normal_values(2100, 1);
  for (int bits = 1; bits <= 8; ++bits) {
    for (const Norm norm : kNorms) {
      for (const bool stochastic : {false, true}) {
        for (const std::size_t size : {0, 1, 7, 8, 9, 511, 512, 1023, 1025, 2100}) {
          const QuantizeConfig config{bits, 1024, norm, stochastic};
          expect_equal_to_reference(config, DType::kFloat32, std::span(values).first(size),
                                    size % 4);
        }
      }
    }
  }
}

TEST_P(QuantizeTargets, OtherDTypes) {
  const testing::ScopedTarget target(GetParam());
  const auto values = testing::normal_values(1537, 2, 1000.0f);
  for (const DType dtype : testing::kAllDTypes) {
    for (const int bits : {1, 3, 4, 8}) {
      for (const Norm norm : kNorms) {
        expect_equal_to_reference({bits, 1024, norm, bits == 3}, dtype, values, 1);
      }
    }
  }
}

TEST_P(QuantizeTargets, OddBuckets) {
  const testing::ScopedTarget target(GetParam());
  const auto values = testing::normal_values(3000, 3);
  for (const std::int64_t bucket : {1, 3, 100, 128, 513, 2048, 1 << 20}) {
    for (const int bits : {2, 5, 7}) {
      expect_equal_to_reference({bits, bucket, Norm::kMinMax, true}, DType::kFloat32, values, 0);
      expect_equal_to_reference({bits, bucket, Norm::kL2, false}, DType::kFloat32, values, 3);
    }
  }
}

TEST_P(QuantizeTargets, AMillionElements) {
  const testing::ScopedTarget target(GetParam());
  const auto values = testing::normal_values(1000003, 4);
  expect_equal_to_reference({4, 1024, Norm::kMinMax, false}, DType::kFloat32, values, 2);
}

// Denormals, ranges beyond the largest float, mixed zeros, NaN and infinities.
TEST_P(QuantizeTargets, ExtremeValues) {
  const testing::ScopedTarget target(GetParam());
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const float scale : {1e-45f, 3e-40f, 1e-30f, 1e30f, kMax / 4}) {
    auto values = testing::normal_values(1100, 5, 0.2f);
    for (auto& value : values) value *= scale;
    for (const Norm norm : kNorms) {
      for (const int bits : {1, 2, 4, 8}) {
        for (const bool stochastic : {false, true}) {
          expect_equal_to_reference({bits, 1024, norm, stochastic}, DType::kFloat32, values, 0);
        }
      }
    }
  }
  for (const float special :
       {-0.0f, kMax, -kMax, std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t at : {0, 15, 700, 1099}) {
      std::vector<float> values(1100);
      values[3] = -kMax;
      values[at] = special;
      for (const Norm norm : kNorms) {
        expect_equal_to_reference({3, 1024, norm, false}, DType::kFloat32, values, 0);
      }
    }
  }
}

TEST_P(QuantizeTargets, AnyBytesDecodeAsTheReferenceDoes) {
  const testing::ScopedTarget target(GetParam());
  std::mt19937 generator(6);
  for (int trial = 0; trial < 300; ++trial) {
    const QuantizeConfig config{1 + trial % 8, 1 + static_cast<std::int64_t>(generator() % 1200),
                                kNorms[trial % 3], false};
    const auto numel = static_cast<std::int64_t>(generator() % 1500);
    std::vector<std::byte> payload(kernels::quantized_bytes(config, numel));
    for (auto& byte : payload) byte = static_cast<std::byte>(generator());
    const DType dtype = testing::kAllDTypes[generator() % 4];
    Tensor a(dtype, static_cast<std::size_t>(numel)), b = a;
    kernels::ref::dequantize(config, payload.data(), dtype, a.data(), numel, WriteMode::kAssign);
    kernels::dequantize(config, payload.data(), dtype, b.data(), numel, WriteMode::kAssign);
    ASSERT_EQ(a.bytes(), b.bytes()) << "trial " << trial;
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, QuantizeTargets, ::testing::ValuesIn(kernels::simd_targets()),
                         [](const auto& target) { return target.param; });

}  // namespace
}  // namespace thinwire
