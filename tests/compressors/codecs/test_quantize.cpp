#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "payloads.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Case {
  std::string norm, rounding;
  int bits;
  CodecPtr codec(std::int64_t bucket = 1024) const {
    return make_codec(concat("quantize(bits=", bits, ", bucket=", bucket, ", norm=", norm,
                             ", rounding=", rounding, ")"));
  }
  double levels_across() const {  // units from the smallest to the largest magnitude coded
    const bool signed_levels = norm != "minmax" && bits > 1;
    return signed_levels ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  }
  // The unit of a bucket, from its definition in the documentation.
  double unit(std::span<const float> bucket) const {
    const auto [lo, hi] = std::minmax_element(bucket.begin(), bucket.end());
    if (*lo == *hi) return 0;
    if (norm == "minmax") return (static_cast<double>(*hi) - *lo) / levels_across();
    double size = std::max(std::abs(static_cast<double>(*lo)), std::abs(static_cast<double>(*hi)));
    if (norm == "l2") {
      double squares = 0;
      for (const double x : bucket) squares += x * x;
      size = std::min(std::sqrt(squares), double{std::numeric_limits<float>::max()});
    }
    return bits == 1 ? 2 * size : size / levels_across();
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const char* norm : {"minmax", "linf", "l2"}) {
    for (const char* rounding : {"nearest", "stochastic"}) {
      for (int bits = 1; bits <= 8; ++bits) cases.push_back({norm, rounding, bits});
    }
  }
  return cases;
}

class Quantize : public ::testing::TestWithParam<Case> {};

TEST_P(Quantize, ErrorStaysWithinTheUnit) {
  const auto codec = GetParam().codec();
  for (const std::size_t size : {1u, 7u, 8u, 9u, 1023u, 1025u, 5000u}) {
    for (const float scale : {1e-44f, 1e-38f, 1e-20f, 1.0f, 1e20f, 6e37f}) {
      const auto values = testing::normal_values(size, 11, scale);
      const auto decoded = testing::round_trip(*codec, values, {.seed = 5});
      for (std::size_t first = 0; first < size; first += 1024) {
        const auto bucket =
            std::span(values).subspan(first, std::min<std::size_t>(1024, size - first));
        const double unit = GetParam().unit(bucket);
        // The largest decoded magnitude, for the rounding to float32.
        const double largest = std::max(unit * GetParam().levels_across(), [&] {
          double most = 0;
          for (const double x : bucket) most = std::max(most, std::abs(x));
          return most;
        }());
        const double bound =
            unit * (GetParam().rounding == "nearest" ? 0.5 : 1.0) + largest * 0x1p-22 + 0x1p-149;
        for (std::size_t i = 0; i < bucket.size(); ++i) {
          const double error = std::abs(static_cast<double>(bucket[i]) - decoded[first + i]);
          ASSERT_LE(error, bound) << "element " << first + i << " of " << size << ", scale "
                                  << scale;
        }
      }
    }
  }
}

TEST_P(Quantize, ConstantsDecodeExactly) {
  const auto codec = GetParam().codec(64);
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const float constant : {0.0f, 1.0f, -1.0f, 0.1f, -3.3333333f, 1e-45f, -1e-40f, 1.9999999f,
                               16777215.0f, -1e30f, kMax, -kMax}) {
    for (const std::size_t size : {1u, 63u, 64u, 1000u}) {
      const std::vector<float> values(size, constant);
      ASSERT_EQ(testing::round_trip(*codec, values), values) << constant << " x " << size;
    }
  }
}

TEST_P(Quantize, RangesBeyondTheLargestFloatStayFinite) {
  const auto codec = GetParam().codec();
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const float low : {-kMax, -3e38f, -1e38f, -1.0f, 1e-45f}) {
    std::vector<float> values(600, low);
    for (std::size_t i = 0; i < values.size(); i += 2) values[i] = kMax;
    for (std::size_t i = 0; i < values.size(); i += 5) values[i] = kMax / static_cast<float>(i + 1);
    const double unit = GetParam().unit(values);
    const auto decoded = testing::round_trip(*codec, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_TRUE(std::isfinite(decoded[i])) << i;
      ASSERT_LE(std::abs(static_cast<double>(values[i]) - decoded[i]), unit * (1 + 1e-6));
    }
  }
}

TEST_P(Quantize, NonFiniteValuesPoisonTheirBucketAlone) {
  const auto codec = GetParam().codec(100);
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    auto values = testing::normal_values(350, 13);
    values[131] = bad;
    const auto decoded = testing::round_trip(*codec, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(std::isnan(decoded[i]), i / 100 == 1) << i;
    }
  }
}

TEST_P(Quantize, PiecesDecodeToTheSameValuesAsTheWhole) {
  const auto codec = GetParam().codec(96);
  const auto values = testing::normal_values(1000, 17);
  const RandomKey key{.seed = 3, .step = 9, .layer = 2, .rank = 1, .stage = 1, .first_element = 11};
  const auto whole = testing::round_trip(*codec, values, key);
  for (std::size_t first = 0; first < values.size(); first += 3 * 96) {
    const auto piece =
        std::span(values).subspan(first, std::min<std::size_t>(3 * 96, 1000 - first));
    RandomKey shifted = key;
    shifted.first_element += first;
    const auto decoded = testing::round_trip(*codec, piece, shifted);
    ASSERT_TRUE(std::equal(decoded.begin(), decoded.end(), whole.begin() + first)) << first;
  }
}

TEST_P(Quantize, FusedReconstructionEqualsDecompress) {
  const auto codec = GetParam().codec();
  for (const DType dtype : testing::kAllDTypes) {
    testing::Tensor input(dtype, testing::normal_values(2077, 19));
    const auto payload = testing::compressed(*codec, std::as_const(input).view(), {.seed = 1});
    testing::Tensor decoded(dtype, input.size());
    codec->decompress(payload, {.seed = 1}, decoded.view(), WriteMode::kAssign);
    std::vector<std::byte> fused(payload.size());
    codec->compress_and_reconstruct(std::as_const(input).view(), {.seed = 1}, fused, input.view());
    EXPECT_EQ(payload, fused);
    EXPECT_EQ(decoded.bytes(), input.bytes());  // in place
  }
}

TEST_P(Quantize, SpecDescribesTheCodec) {
  const auto codec = GetParam().codec(77);
  EXPECT_EQ(make_codec(codec->spec())->spec(), codec->spec());
  EXPECT_THAT(codec->spec(),
              HasSubstr(concat("bits=", GetParam().bits, ", bucket=77, norm=", GetParam().norm,
                               ", rounding=", GetParam().rounding)));
  EXPECT_EQ(codec->block_size(), 77);
  EXPECT_EQ(codec->traits().unbiased, GetParam().rounding == "stochastic");
}

TEST_P(Quantize, PayloadOfAnotherLengthIsRefused) {
  const auto codec = GetParam().codec();
  std::vector<float> out(1025);
  std::vector<std::byte> payload(codec->max_compressed_bytes(1025, DType::kFloat32) + 1);
  for (const std::size_t size : {std::size_t{0}, payload.size() - 2, payload.size()}) {
    EXPECT_THROW(codec->decompress(std::span(payload).first(size), {}, view_of(std::span(out)),
                                   WriteMode::kAssign),
                 FrameError);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Quantize, ::testing::ValuesIn(all_cases()), [](const auto& tested) {
  return concat(tested.param.norm, "_", tested.param.rounding, "_", tested.param.bits);
});

TEST(QuantizeRounding, StochasticMeanIsUnbiased) {
  for (const char* norm : {"minmax", "linf", "l2"}) {
    for (const int bits : {1, 2, 4}) {
      const Case c{norm, "stochastic", bits};
      const auto codec = c.codec();
      const auto values = testing::normal_values(64, 23);
      std::vector<double> sum(values.size());
      constexpr int kSeeds = 4000;
      for (int seed = 0; seed < kSeeds; ++seed) {
        const auto decoded =
            testing::round_trip(*codec, values, {.seed = static_cast<std::uint64_t>(seed)});
        for (std::size_t i = 0; i < values.size(); ++i) sum[i] += decoded[i];
      }
      // An element's standard deviation is at most unit / 2; five of the mean's.
      const double bound = 5 * c.unit(values) / 2 / std::sqrt(kSeeds);
      for (std::size_t i = 0; i < values.size(); ++i) {
        EXPECT_NEAR(sum[i] / kSeeds, values[i], bound) << norm << " " << bits << " element " << i;
      }
    }
  }
}

TEST(QuantizeRounding, KeysGiveTheirOwnRandomNumbers) {
  const auto codec = make_codec("quantize(bits=2, rounding=stochastic)");
  const auto values = testing::normal_values(1024, 29);
  const auto base = testing::round_trip(*codec, values, {.seed = 1});
  EXPECT_EQ(base, testing::round_trip(*codec, values, {.seed = 1}));
  for (const RandomKey& key :
       {RandomKey{.seed = 2}, RandomKey{.seed = 1, .step = 1}, RandomKey{.seed = 1, .layer = 1},
        RandomKey{.seed = 1, .rank = 1}, RandomKey{.seed = 1, .stage = 1}}) {
    EXPECT_NE(base, testing::round_trip(*codec, values, key));
  }
}

TEST(QuantizeBytes, FollowTheClosedForm) {
  const auto bytes = [](const char* spec, std::int64_t n) {
    return make_codec(spec)->max_compressed_bytes(n, DType::kFloat32);
  };
  EXPECT_EQ(bytes("quantize(bits=4)", 0), 0u);
  EXPECT_EQ(bytes("quantize(bits=4)", 1), 9u);
  EXPECT_EQ(bytes("quantize(bits=3)", 1025), 8u + 384u + 8u + 1u);
  EXPECT_EQ(bytes("quantize(bits=3, norm=linf)", 1025), 4u + 384u + 4u + 1u);
  constexpr std::int64_t kResNet18 = 11689512;
  EXPECT_NEAR(4.0 * kResNet18 / static_cast<double>(bytes("quantize(bits=4)", kResNet18)), 7.88,
              0.01);
}

TEST(QuantizeSpec, ErrorsNameTheParameter) {
  const auto make = [](const char* spec) { return [spec] { make_codec(spec); }; };
  EXPECT_THAT(make("quantize(bits=9)"), ThrowsMessage<InvalidArgument>(HasSubstr("bits")));
  EXPECT_THAT(make("quantize(bits=0)"), ThrowsMessage<InvalidArgument>(HasSubstr("bits")));
  EXPECT_THAT(make("quantize(bucket=0)"), ThrowsMessage<InvalidArgument>(HasSubstr("bucket")));
  EXPECT_THAT(make("quantize(norm=l3)"), ThrowsMessage<InvalidArgument>(HasSubstr("minmax")));
  EXPECT_THAT(make("quantize(bit=4)"), ThrowsMessage<InvalidArgument>(HasSubstr("bits")));
}

}  // namespace
}  // namespace thinwire
