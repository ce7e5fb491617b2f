// What every codec promises, over {codec × dtype × size × alignment}.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/simd.h"

namespace thinwire {
namespace {

constexpr RandomKey kKey{.seed = 7, .step = 11, .layer = 3, .rank = 2};

// Every row of the table, with the variants that change its code path.
std::vector<std::string> specs() {
  std::vector<std::string> all;
  for (const auto& entry : codec_table()) all.emplace_back(entry.name);
  for (const char* variant : {"cast(fp16)",
                              "cast(fp8_e4m3)",
                              "cast(fp8_e5m2)",
                              "quantize(bits=2, bucket=64)",
                              "quantize(bits=3, bucket=100, norm=l2)",
                              "quantize(bits=2, norm=linf, rounding=stochastic)",
                              "topk(density=0.1, values=fp16)",
                              "topk(density=0.3, select=sampled, values=bf16)",
                              "topk(density=1)",
                              "topk(density=0.2, values=coded)",
                              "randomk(density=0.25, unbiased=on)",
                              "randomk(density=0.3)",
                              "onebit(bucket=64)",
                              "terngrad(bucket=128, clip=2.5)",
                              "ternary(density=0.2)",
                              "powersgd(rank=2, iterations=2)",
                              "powersgd(rank=2, factors=bf16)",
                              "powersgd(rank=2, factors=int8)",
                              "powersgd(rank=2, factors=int4)",
                              "powersgd(rank=2, factors=ecsq(bits=3))",
                              "ecsq(bits=0.5)",
                              "ecsq(bits=8)",
                              "ecsq(error=0.2)",
                              "ecsq(as=quantize(bits=4))",
                              "spectral(error=0.2, directions=4)"}) {
    all.emplace_back(variant);
  }
  return all;
}

// Values of a dtype, in a buffer that starts `offset` elements into its memory.
struct Tensor {
  Tensor(std::int64_t n, DType type, std::size_t offset, std::vector<std::int64_t> dimensions = {})
      : shape(std::move(dimensions)),
        memory(static_cast<std::size_t>(n) * size_of(type) + offset * size_of(type)),
        view{memory.data() + offset * size_of(type), n, type, shape} {}

  void set(const std::vector<float>& values) {
    kernels::store_floats(view.dtype, view.data, 0, values.size(), values.data(),
                          WriteMode::kAssign);
  }
  std::vector<double> values() const {
    std::vector<double> result(static_cast<std::size_t>(view.numel));
    if (result.empty()) return result;  // neither side has memory
    if (view.dtype == DType::kFloat64) {
      std::memcpy(result.data(), view.data, view.bytes());
    } else {
      std::vector<float> floats(result.size());
      kernels::load_floats(view.dtype, view.data, 0, floats.size(), floats.data());
      std::copy(floats.begin(), floats.end(), result.begin());
    }
    return result;
  }

  std::vector<std::int64_t> shape;
  std::vector<std::byte> memory;
  TensorView view;
};

std::vector<float> gaussian(std::int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 0.01f);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (auto& value : values) value = normal(generator);
  return values;
}

std::vector<std::byte> encode(const Codec& codec, const TensorView& x,
                              const RandomKey& key = kKey) {
  std::vector<std::byte> payload(codec.max_compressed_bytes(x.numel, x.dtype));
  payload.resize(codec.compress(as_const(x), key, payload));
  return payload;
}

double squared_norm(const std::vector<double>& x) {
  return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

// n as a matrix where it is one, so that powersgd has something to do.
std::vector<std::int64_t> shape_of(std::int64_t n) {
  if (n % 40 == 0 && n > 0) return {40, n / 40};
  return {n};
}

class EveryCodec : public testing::TestWithParam<std::string> {
 protected:
  CodecPtr codec_ = make_codec(GetParam());
};

TEST_P(EveryCodec, SpecIsCanonicalAndRoundTrips) {
  const std::string text = codec_->spec();
  EXPECT_EQ(make_codec(text)->spec(), text);
  EXPECT_EQ(Spec::parse(text).str(), text);
}

TEST_P(EveryCodec, SizeTraitBoundAndAccumulateHold) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t n : {0, 1, 2, 7, 16, 63, 64, 65, 1000, 1024, 1025, 4000, 10007}) {
      for (const std::size_t offset : {0, 1}) {
        SCOPED_TRACE(concat(name_of(dtype), " ", n, " offset ", offset));
        Tensor x(n, dtype, offset, shape_of(n)), y(n, dtype, offset, shape_of(n));
        x.set(gaussian(n, 1));
        const auto payload = encode(*codec_, x.view);
        if (codec_->traits().fixed_size) {
          EXPECT_EQ(payload.size(), codec_->max_compressed_bytes(n, dtype));
        }
        y.set(gaussian(n, 2));
        const auto before = y.values();
        Tensor assigned(n, dtype, 0, shape_of(n));
        codec_->decompress(payload, kKey, assigned.view, WriteMode::kAssign);
        codec_->decompress(payload, kKey, y.view, WriteMode::kAccumulate);
        const auto decoded = assigned.values(), sum = y.values(), original = x.values();
        // Narrow dtypes round the sum; bfloat16 most, by 2^-8.
        for (std::size_t i = 0; i < sum.size(); ++i) {
          ASSERT_NEAR(sum[i], before[i] + decoded[i],
                      0.01 * (std::abs(before[i]) + std::abs(decoded[i])))
              << i;
        }
        if (codec_->traits().lossless) {
          EXPECT_EQ(decoded, original);
        }
      }
    }
  }
}

// compress_and_subtract() leaves what decoding lacks, NaN included; decompress_entries() reads what
// decompress() sets.
TEST_P(EveryCodec, TheOtherFormsSayTheSame) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t n : {0, 1, 7, 64, 1000, 1025, 4000}) {
    for (const bool poisoned : {false, true}) {
      Tensor x(n, DType::kFloat32, 1, shape_of(n)), decoded(n, DType::kFloat32, 0, shape_of(n));
      auto values = gaussian(n, 4);
      if (poisoned) std::ranges::fill(values, kNan);
      x.set(values);
      const auto payload = encode(*codec_, x.view);
      codec_->decompress(payload, kKey, decoded.view, WriteMode::kAssign);
      std::vector<std::byte> same(codec_->max_compressed_bytes(n, DType::kFloat32));
      same.resize(codec_->compress_and_subtract(x.view, kKey, same));
      EXPECT_EQ(same, payload) << n;
      const auto rest = x.values(), sent = decoded.values();
      for (std::size_t i = 0; i < rest.size(); ++i) {
        if (poisoned) {
          ASSERT_FALSE(std::isfinite(rest[i])) << i;
        } else {
          ASSERT_EQ(rest[i], values[i] - static_cast<float>(sent[i])) << i << " of " << n;
        }
      }
      SparseEntries entries;
      if (!codec_->decompress_entries(payload, n, entries)) continue;
      EXPECT_TRUE(std::ranges::is_sorted(entries.indices));
      std::vector<double> scattered(sent.size());
      for (std::size_t j = 0; j < entries.size(); ++j) {
        scattered[entries.indices[j]] = entries.values[j];
      }
      for (std::size_t i = 0; i < sent.size(); ++i) {
        ASSERT_TRUE(poisoned ? std::isnan(scattered[i]) : scattered[i] == sent[i]) << i;
      }
    }
  }
}

// Codecs that claim something, each of which is a suite of its own.
class CodecExactOnConstants : public EveryCodec {};
class CodecUnbiased : public EveryCodec {};
class CodecWithFeedback : public EveryCodec {};
class CodecOfBlocks : public EveryCodec {};

std::vector<std::string> specs_where(const std::function<bool(const Codec&)>& claim) {
  std::vector<std::string> claiming = specs();
  std::erase_if(claiming, [&](const std::string& spec) { return !claim(*make_codec(spec)); });
  return claiming;
}

TEST_P(CodecExactOnConstants, ConstantsSurvive) {
  for (const float constant : {0.0f, 1.0f, -0.1f, 3e-39f, 1e38f, 0.3333333f}) {
    for (const std::int64_t n : {1, 17, 1024, 3001}) {
      Tensor x(n, DType::kFloat32, 0), y(n, DType::kFloat32, 0);
      x.set(std::vector<float>(static_cast<std::size_t>(n), constant));
      codec_->decompress(encode(*codec_, x.view), kKey, y.view, WriteMode::kAssign);
      EXPECT_EQ(y.values(), x.values()) << constant << " " << n;
    }
  }
}

TEST_P(CodecUnbiased, MeansAreTheValues) {
  constexpr std::int64_t kNumel = 200;
  constexpr int kRounds = 4000;
  Tensor x(kNumel, DType::kFloat32, 0), y(kNumel, DType::kFloat32, 0);
  x.set(gaussian(kNumel, 5));
  std::vector<double> sum(kNumel), squares(kNumel);
  for (int round = 0; round < kRounds; ++round) {
    const RandomKey key{.seed = 1, .step = static_cast<std::uint64_t>(round)};
    codec_->decompress(encode(*codec_, x.view, key), key, y.view, WriteMode::kAssign);
    const auto values = y.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      sum[i] += values[i];
      squares[i] += values[i] * values[i];
    }
  }
  const auto exact = x.values();
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double mean = sum[i] / kRounds;
    const double deviation = std::sqrt(std::max(0.0, squares[i] / kRounds - mean * mean) / kRounds);
    // Six standard deviations of the mean; rare events may not have happened yet at all.
    EXPECT_NEAR(mean, exact[i], 6 * deviation + 1e-4) << i;
  }
}

TEST_P(CodecWithFeedback, Contracts) {
  for (const std::int64_t n : {40, 1000, 1024, 8000}) {
    Tensor x(n, DType::kFloat64, 0, shape_of(n)), y(n, DType::kFloat64, 0, shape_of(n));
    x.set(gaussian(n, 9));
    codec_->decompress(encode(*codec_, x.view), kKey, y.view, WriteMode::kAssign);
    auto error = x.values();
    const auto decoded = y.values();
    const double before = squared_norm(error);
    for (std::size_t i = 0; i < error.size(); ++i) error[i] -= decoded[i];
    EXPECT_LT(squared_norm(error), before * (1 - 1e-4)) << n;
  }
}

TEST_P(EveryCodec, NonFiniteElementsDecodeToNonFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::int64_t n : {1, 100, 4000}) {
      // Elements that a sparse codec cannot all keep included.
      for (const std::int64_t count : {std::int64_t{1}, n}) {
        Tensor x(n, DType::kFloat32, 0, shape_of(n)), y(n, DType::kFloat32, 0, shape_of(n));
        auto values = gaussian(n, 3);
        for (std::int64_t i = n - count; i < n; ++i) values[static_cast<std::size_t>(i)] = bad;
        x.set(values);
        codec_->decompress(encode(*codec_, x.view), kKey, y.view, WriteMode::kAssign);
        const auto decoded = y.values();
        for (std::int64_t i = n - count; i < n; ++i) {
          ASSERT_FALSE(std::isfinite(decoded[static_cast<std::size_t>(i)]))
              << bad << " at " << i << " of " << n;
        }
      }
    }
  }
}

TEST_P(EveryCodec, WrongLengthsAreRefusedAndDamageIsHarmless) {
  constexpr std::int64_t kNumel = 4000;
  Tensor x(kNumel, DType::kFloat32, 0, shape_of(kNumel)),
      y(kNumel, DType::kFloat32, 0, shape_of(kNumel));
  x.set(gaussian(kNumel, 4));
  auto payload = encode(*codec_, x.view);
  for (std::size_t size = 0; size < payload.size(); size += 1 + payload.size() / 97) {
    // A copy of that very size, so that a sanitizer sees what lies beyond it.
    const std::vector<std::byte> cut(payload.begin(),
                                     payload.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(codec_->decompress(cut, kKey, y.view, WriteMode::kAssign), FrameError) << size;
  }
  payload.push_back(std::byte{0});
  EXPECT_THROW(codec_->decompress(payload, kKey, y.view, WriteMode::kAssign), FrameError);
  payload.pop_back();
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    auto damaged = payload;
    const std::size_t front =
        round % 2 ? damaged.size() : std::min<std::size_t>(damaged.size(), 16);
    damaged[random() % front] ^= static_cast<std::byte>(1u << random() % 8);
    try {
      codec_->decompress(damaged, kKey, y.view, WriteMode::kAssign);
    } catch (const FrameError&) {
    }
  }
}

TEST_P(EveryCodec, OutputBufferThatIsTooSmallIsRefused) {
  Tensor x(1000, DType::kFloat32, 0, shape_of(1000));
  x.set(gaussian(1000, 4));
  std::vector<std::byte> payload(encode(*codec_, x.view).size() - 1);
  EXPECT_THROW(codec_->compress(as_const(x.view), kKey, payload), InvalidArgument);
}

TEST_P(EveryCodec, AllSimdTargetsGiveTheSameBytes) {
  for (const std::int64_t n : {1, 100, 1023, 4000, 80000}) {
    Tensor x(n, DType::kFloat32, 0, shape_of(n));
    auto values = gaussian(n, 6);
    for (std::size_t i = 0; i < values.size(); i += 7) values[i] = values[0];  // ties
    x.set(values);
    kernels::set_simd_target("");
    const auto expected = encode(*codec_, x.view);
    Tensor y(n, DType::kFloat32, 0, shape_of(n));
    codec_->decompress(expected, kKey, y.view, WriteMode::kAssign);
    for (const auto& target : kernels::simd_targets()) {
      kernels::set_simd_target(target);
      EXPECT_EQ(encode(*codec_, x.view), expected) << target << " " << n;
      Tensor z(n, DType::kFloat32, 0, shape_of(n));
      codec_->decompress(expected, kKey, z.view, WriteMode::kAssign);
      EXPECT_EQ(z.memory, y.memory) << target << " " << n;
    }
    kernels::set_simd_target("");
  }
}

TEST_P(CodecOfBlocks, PiecesDecodeLikeTheWhole) {
  const std::int64_t block = codec_->block_size();
  const std::int64_t cut = 3 * block, n = cut + 2 * block + 5;
  Tensor x(n, DType::kFloat32, 0), whole(n, DType::kFloat32, 0), pieces(n, DType::kFloat32, 0);
  x.set(gaussian(n, 8));
  codec_->decompress(encode(*codec_, x.view), kKey, whole.view, WriteMode::kAssign);
  for (const auto& [first, count] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, n - cut}}) {
    RandomKey key = kKey;
    key.first_element = static_cast<std::uint64_t>(first);
    const TensorView from{static_cast<float*>(x.view.data) + first, count};
    const TensorView to{static_cast<float*>(pieces.view.data) + first, count};
    codec_->decompress(encode(*codec_, from, key), key, to, WriteMode::kAssign);
  }
  EXPECT_EQ(pieces.memory, whole.memory);
}

// sum of what was sent + residual = sum of the gradients, in double precision; and the residual
// stays bounded over many steps of fresh gradients.
TEST_P(CodecWithFeedback, TelescopesAndStaysBounded) {
  constexpr std::int64_t kNumel = 120;
  constexpr int kSteps = 4000;
  Tensor corrected(kNumel, DType::kFloat64, 0, {12, 10}),
      sent(kNumel, DType::kFloat64, 0, {12, 10});
  std::vector<double> residual(kNumel), gradients(kNumel), updates(kNumel);
  std::mt19937 generator(3);
  std::normal_distribution<double> normal;
  double early = 0, late = 0;
  for (int step = 0; step < kSteps; ++step) {
    auto* at = static_cast<double*>(corrected.view.data);
    for (std::size_t i = 0; i < residual.size(); ++i) {
      const double gradient = normal(generator);
      gradients[i] += gradient;
      at[i] = gradient + residual[i];
    }
    const RandomKey key{.seed = 1, .step = static_cast<std::uint64_t>(step)};
    codec_->decompress(encode(*codec_, corrected.view, key), key, sent.view, WriteMode::kAssign);
    const auto* decoded = static_cast<const double*>(sent.view.data);
    for (std::size_t i = 0; i < residual.size(); ++i) {
      residual[i] = at[i] - decoded[i];
      updates[i] += decoded[i];
    }
    const double norm = std::sqrt(squared_norm(residual));
    if (step >= kSteps / 4 && step < kSteps / 2) early = std::max(early, norm);
    if (step >= kSteps / 2) late = std::max(late, norm);
  }
  for (std::size_t i = 0; i < residual.size(); ++i) {
    EXPECT_NEAR(updates[i] + residual[i], gradients[i], 1e-7) << i;
  }
  EXPECT_LT(late, 1.6 * early + 1e-9);
}

std::string name_of_test(const testing::TestParamInfo<std::string>& test) {
  std::string name;
  for (const char c : test.param) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Table, EveryCodec, testing::ValuesIn(specs()), name_of_test);
INSTANTIATE_TEST_SUITE_P(Table, CodecExactOnConstants,
                         testing::ValuesIn(specs_where([](const Codec& codec) {
                           return codec.traits().exact_on_constants;
                         })),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(Table, CodecUnbiased,
                         testing::ValuesIn(specs_where([](const Codec& codec) {
                           return codec.traits().unbiased;
                         })),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(Table, CodecWithFeedback,
                         testing::ValuesIn(specs_where([](const Codec& codec) {
                           return codec.traits().needs_error_feedback;
                         })),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(Table, CodecOfBlocks,
                         testing::ValuesIn(specs_where([](const Codec& codec) {
                           return codec.block_size() > 0;
                         })),
                         name_of_test);

}  // namespace
}  // namespace thinwire
