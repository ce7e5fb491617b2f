// The body of the CUDA quantise kernels on host threads, bit for bit against the scalar reference.
//
// The program needs neither a GPU nor the library. Under ThreadSanitizer it also proves the syncs:
// with any one of those in quantize_block.h taken out, a race is reported (docs/gpu.md).
#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "host_block.h"
#include "thinwire/compressors/kernels/quantize_block.h"
#include "thinwire/compressors/kernels/quantize_ref.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire {
namespace {

using kernels::Norm;
using kernels::QuantizeConfig;
using testing::HostBlock;
using testing::Tensor;

constexpr Norm kNorms[] = {Norm::kMinMax, Norm::kLinf, Norm::kL2};
constexpr std::uint64_t kFirst = 5;  // not at the start of a block of random words

std::size_t payload_bytes(const QuantizeConfig& config, std::int64_t numel) {
  std::size_t bytes = 0;
  for (std::int64_t first = 0; first < numel; first += config.bucket) {
    const auto elements = static_cast<std::size_t>(std::min(config.bucket, numel - first));
    bytes += kernels::bucket_bytes(config.norm, config.bits, elements);
  }
  return bytes;
}

// One tensor, encoded and decoded in every way.
struct Case {
  Case(const QuantizeConfig& config_of, DType dtype_of, std::span<const float> values,
       std::size_t misaligned_by)
      : config(config_of),
        dtype(dtype_of),
        misaligned(misaligned_by),
        numel(static_cast<std::int64_t>(values.size())),
        input(dtype, values),
        in_place(input),
        assigned(dtype, values.size()),
        accumulated(input),
        payload(payload_bytes(config, numel) + 64, std::byte{0xAB}) {}

  kernels::QuantizeShape shape() const {
    return {config.bits, config.norm, dtype, config.bucket, numel};
  }
  std::string text() const {
    return concat("bits ", config.bits, " bucket ", config.bucket, " norm ",
                  static_cast<int>(config.norm), " stochastic ", config.stochastic, " dtype ",
                  name_of(dtype), " numel ", numel, " misaligned ", misaligned);
  }

  // What every thread of the block does.
  template <DType kType>
  void run(HostBlock& block, kernels::QuantizeShared& shared) {
    // Encodes with the reconstruction in place of the input.
    const kernels::QuantizeTask encode{
        shape(),         config.stochastic,           kFirst,         random,
        in_place.data(), payload.data() + misaligned, in_place.data()};
    const std::uint64_t buckets = kernels::bucket_count(shape());
    for (std::uint64_t i = 0; i < buckets; ++i) {
      kernels::quantize_bucket<kType>(block, shared, encode, i);
    }
    block.sync();  // as the end of a kernel
    for (Tensor* output : {&assigned, &accumulated}) {
      const kernels::DequantizeTask decode{shape(), output == &accumulated,
                                           payload.data() + misaligned, output->data()};
      for (std::uint64_t i = 0; i < buckets; ++i)
        kernels::dequantize_bucket<kType>(block, decode, i);
    }
  }

  void expect_reference() const {
    SCOPED_TRACE(text());
    std::vector<std::byte> expected(payload.size(), std::byte{0xAB});
    Tensor values(input), sums(input);
    auto* out = expected.data() + misaligned;
    kernels::ref::quantize(config, dtype, input.data(), numel, random, kFirst, out, values.data());
    kernels::ref::dequantize(config, out, dtype, sums.data(), numel, WriteMode::kAccumulate);
    ASSERT_EQ(expected, payload);
    ASSERT_EQ(values.bytes(), in_place.bytes());
    ASSERT_EQ(values.bytes(), assigned.bytes());
    ASSERT_EQ(sums.bytes(), accumulated.bytes());
  }

  QuantizeConfig config;
  DType dtype;
  std::size_t misaligned;
  std::int64_t numel;
  PhiloxStream random = PhiloxStream::of({.seed = 7, .step = 3, .layer = 1});
  Tensor input, in_place, assigned, accumulated;
  std::vector<std::byte> payload;
};

// Runs all cases on one block, one after the other, and compares them.
void expect_all_equal_to_reference(std::uint32_t threads, std::deque<Case>& cases) {
  kernels::QuantizeShared shared;
  testing::run_on_host_block(threads, [&](HostBlock& block) {
    for (Case& one : cases) {
      kernels::with_dtype(one.dtype,
                          [&](auto dtype) { one.run<decltype(dtype)::value>(block, shared); });
    }
  });
  for (const Case& one : cases) one.expect_reference();
}

class QuantizeBlock : public ::testing::TestWithParam<std::uint32_t> {};

TEST_P(QuantizeBlock, AllWidthsNormsRoundingsSizesAndDTypes) {
  const auto values = testing::normal_values(1601, 1);
  std::deque<Case> cases;
  std::size_t misaligned = 0;
  for (int bits = 1; bits <= 8; ++bits) {
    // Barriers of many threads on few cores are slow: the largest block takes one size of one
    // width.
    if (GetParam() > 32 && bits != 3) continue;
    for (const Norm norm : kNorms) {
      for (const bool stochastic : {false, true}) {
        for (const std::size_t size : {0, 1, 7, 8, 9, 1023, 1025, 1601}) {
          if (GetParam() > 32 && size != 1025) continue;
          for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
            cases.emplace_back(QuantizeConfig{bits, 1024, norm, stochastic}, dtype,
                               std::span(values).first(size), misaligned++ % 4);
          }
        }
      }
    }
  }
  expect_all_equal_to_reference(GetParam(), cases);
}

TEST_P(QuantizeBlock, RowsOfOddBuckets) {
  const auto values = testing::normal_values(1300, 3);
  std::deque<Case> cases;
  for (const std::int64_t bucket : {3, 100, 513, 1 << 20}) {
    const auto some = std::span(values).first(bucket < 100 ? 40 : 1300);
    for (const int bits : {2, 5, 7}) {
      cases.emplace_back(QuantizeConfig{bits, bucket, Norm::kMinMax, true}, DType::kFloat32, some,
                         0);
      cases.emplace_back(QuantizeConfig{bits, bucket, Norm::kL2, false}, DType::kFloat64, some, 3);
    }
  }
  expect_all_equal_to_reference(GetParam(), cases);
}

TEST_P(QuantizeBlock, ExtremeAndNonFiniteValues) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::deque<Case> cases;
  for (const float scale : {1e-45f, 3e-40f, 1e30f, kMax / 4}) {
    auto values = testing::normal_values(700, 5, 0.2f);
    for (float& value : values) value *= scale;
    for (const Norm norm : kNorms) {
      cases.emplace_back(QuantizeConfig{4, 1024, norm, scale > 1}, DType::kFloat32, values, 0);
    }
  }
  for (const float special : {-0.0f, kMax, kInfinity, -kInfinity, std::nanf("")}) {
    std::vector<float> values(700);
    values[3] = -kMax;
    values[600] = special;
    for (const Norm norm : kNorms) {
      cases.emplace_back(QuantizeConfig{3, 512, norm, false}, DType::kFloat32, values, 0);
    }
  }
  // Magnitudes whose l2 norm float16 does not hold.
  std::vector<float> large(600, 60000.0f);
  std::vector<float> mixed(large);
  mixed[5] = -60000.0f;
  for (const auto* values : {&large, &mixed}) {
    cases.emplace_back(QuantizeConfig{8, 1024, Norm::kL2, true}, DType::kFloat16, *values, 0);
  }
  expect_all_equal_to_reference(GetParam(), cases);
}

TEST_P(QuantizeBlock, AnyBytesDecodeAsTheReferenceDoes) {
  std::mt19937 generator(6);
  std::deque<Case> cases;
  for (int trial = 0; trial < 60; ++trial) {
    const QuantizeConfig config{1 + trial % 8, 1 + static_cast<std::int64_t>(generator() % 1200),
                                kNorms[trial % 3], false};
    const std::vector<float> zeros(generator() % 1500);
    auto& one = cases.emplace_back(config, testing::kAllDTypes[generator() % 4], zeros, 0);
    for (auto& byte : one.payload) byte = static_cast<std::byte>(generator());
  }
  testing::run_on_host_block(GetParam(), [&](HostBlock& block) {
    for (Case& one : cases) {
      const kernels::DequantizeTask decode{one.shape(), false, one.payload.data(),
                                           one.assigned.data()};
      for (std::uint64_t i = 0; i < kernels::bucket_count(one.shape()); ++i) {
        kernels::with_dtype(one.dtype, [&](auto dtype) {
          kernels::dequantize_bucket<decltype(dtype)::value>(block, decode, i);
        });
      }
    }
  });
  for (const Case& one : cases) {
    Tensor expected(one.input);
    kernels::ref::dequantize(one.config, one.payload.data(), one.dtype, expected.data(), one.numel,
                             WriteMode::kAssign);
    ASSERT_EQ(expected.bytes(), one.assigned.bytes()) << one.text();
  }
}

// One thread, odd numbers, powers of two, a warp, two warps.
INSTANTIATE_TEST_SUITE_P(Threads, QuantizeBlock, ::testing::Values(1u, 3u, 8u, 29u, 32u, 64u),
                         [](const auto& threads) { return concat(threads.param); });

}  // namespace
}  // namespace thinwire
