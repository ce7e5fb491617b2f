#include "thinwire/compressors/allocation/curves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/curve_errors.h"
#include "thinwire/compressors/allocation/low_rank_energy.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::lgreco {
namespace {

using ::testing::HasSubstr;

std::vector<float> gaussian(std::size_t size, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& x : values) x = normal(rng) * std::exp(normal(rng));
  return values;
}

// ‖x − decode(encode(x))‖² with the whole tensor at once.
double codec_error(const std::string& spec, std::span<const float> x) {
  const CodecPtr codec = make_codec(spec);
  std::vector<std::byte> bytes(
      codec->max_compressed_bytes(static_cast<std::int64_t>(x.size()), DType::kFloat32));
  const std::size_t written = codec->compress(view_of(x), {}, bytes);
  std::vector<float> decoded(x.size());
  codec->decompress(std::span(bytes).first(written), {}, view_of(std::span<float>(decoded)),
                    WriteMode::kAssign);
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double d = static_cast<double>(x[i]) - decoded[i];
    sum += d * d;
  }
  return sum;
}

TEST(Curves, EveryErrorEqualsTheCodecs) {
  // One element, a tail, several pieces with a tail.
  for (std::size_t numel : {std::size_t{1}, std::size_t{1025}, std::size_t{50'001}}) {
    const auto gradient = gaussian(numel, 1);
    const std::int64_t shape[] = {static_cast<std::int64_t>(numel)};
    for (const char* policy : {"lgreco(family=quantize)", "lgreco(family=topk, reference=0.05)",
                               "lgreco(family=topk, reference=topk(density=0.05, values=fp16))",
                               "lgreco(family=topk, reference=topk(0.05, exact, bf16))",
                               "lgreco(family=mixed, reference=ternary(density=0.02))",
                               "lgreco(family=quantize, reference=quantize(bits=3, bucket=100))"}) {
      const Layer layer =
          rate_distortion_curve("w", gradient, shape, parse_policy(Spec::parse(policy)));
      for (const Candidate& candidate : layer.candidates) {
        const double truth = std::sqrt(codec_error(candidate.spec, gradient));
        EXPECT_NEAR(candidate.error, truth, 1e-12 * truth) << candidate.spec << " of " << numel;
      }
    }
  }
}

TEST(SelectionErrors, EqualASortAlsoWithTiesAndExtremes) {
  auto gradient = gaussian(5000, 2);
  for (std::size_t i = 0; i < 2000; ++i) gradient[2 * i] = i % 3 ? 0.5f : -0.5f;
  gradient[7] = 1e30f, gradient[9] = 1e-40f, gradient[11] = -0.0f;
  std::vector<std::int64_t> counts = {0, 1, 2, 49, 50, 999, 2500, 4999, 5000, 6000};
  const auto errors = selection_squared_errors(gradient, counts, ValueType::kFloat32);
  std::vector<double> magnitudes(gradient.begin(), gradient.end());
  for (double& x : magnitudes) x = std::abs(x);
  std::sort(magnitudes.begin(), magnitudes.end());
  for (std::size_t i = 0; i < counts.size(); ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < 5000 - counts[i]; ++j) {
      sum += magnitudes[static_cast<std::size_t>(j)] * magnitudes[static_cast<std::size_t>(j)];
    }
    EXPECT_NEAR(errors[i].topk, sum, 1e-13 * sum) << counts[i];
  }
  EXPECT_EQ(errors[0].ternary, errors[0].topk);
}

TEST(SymmetricEigenvalues, AreThoseOfKnownMatrices) {
  // The second difference: 2 − 2 cos(kπ / (n + 1)).
  constexpr std::size_t kSize = 40;
  std::vector<double> a(kSize * kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    a[i * kSize + i] = 2;
    if (i > 0) a[i * kSize + i - 1] = -1;
  }
  // Shuffled rows and columns keep the eigenvalues but fill the matrix.
  std::vector<std::size_t> order(kSize);
  for (std::size_t i = 0; i < kSize; ++i) order[i] = i * 17 % kSize;
  std::vector<double> full(kSize * kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    for (std::size_t j = 0; j < kSize; ++j) {
      full[order[i] * kSize + order[j]] = i >= j ? a[i * kSize + j] : a[j * kSize + i];
    }
  }
  const auto found = symmetric_eigenvalues(full, kSize);
  for (std::size_t k = 0; k < kSize; ++k) {
    EXPECT_NEAR(found[k], 2 - 2 * std::cos(M_PI * static_cast<double>(k + 1) / (kSize + 1)), 1e-13);
  }
  std::vector<double> zero(9, 0);
  EXPECT_THAT(symmetric_eigenvalues(zero, 3), ::testing::Each(0));
}

// H · diag(s) · G with reflections H and G has the singular values s.
std::vector<float> with_singular_values(std::size_t rows, std::size_t cols,
                                        const std::vector<double>& s) {
  const auto u = gaussian(rows, 3), v = gaussian(cols, 4);
  const auto reflection = [](const std::vector<float>& w, std::size_t i, std::size_t j) {
    double square = 0;
    for (float x : w) square += static_cast<double>(x) * x;
    return (i == j ? 1.0 : 0.0) - 2.0 * w[i] * w[j] / square;
  };
  std::vector<float> matrix(rows * cols);
  for (std::size_t i = 0; i < rows; ++i) {
    std::vector<double> row(cols, 0);
    for (std::size_t k = 0; k < s.size(); ++k) row[k] = reflection(u, i, k) * s[k];
    double square = 0, dot = 0;
    for (std::size_t j = 0; j < cols; ++j) square += static_cast<double>(v[j]) * v[j];
    for (std::size_t j = 0; j < cols; ++j) dot += row[j] * v[j];
    for (std::size_t j = 0; j < cols; ++j) {
      matrix[i * cols + j] = static_cast<float>(row[j] - 2 * dot * v[j] / square);
    }
  }
  return matrix;
}

TEST(LowRank, TailsAreThoseOfTheSpectrum) {
  const std::vector<double> s = {9, 7, 5, 3, 2, 1, 0.5, 0.1};
  const std::vector<std::int64_t> ranks = {0, 1, 3, 7, 8, 20};
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{24, 60}, {60, 24}}) {
    const auto matrix =
        with_singular_values(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), s);
    const auto errors = low_rank_squared_errors(matrix, rows, cols, ranks);
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      double tail = 0;
      for (auto k = static_cast<std::size_t>(ranks[i]); k < s.size(); ++k) tail += s[k] * s[k];
      EXPECT_NEAR(errors[i], tail, 1e-5) << ranks[i];
    }
  }
}

TEST(LowRank, EstimatesOfLargeMatricesAreAboveAndNearTheTruth) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{520, 530}, {150, 420}}) {
    for (const double decay : {0.0, 0.5, 1.0}) {
      std::vector<double> s(static_cast<std::size_t>(rows));
      for (std::size_t k = 0; k < s.size(); ++k)
        s[k] = std::pow(static_cast<double>(k + 1), -decay);
      const auto matrix =
          with_singular_values(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), s);
      const std::vector<std::int64_t> ranks = {1, 4, 16};
      const auto errors = low_rank_squared_errors(matrix, rows, cols, ranks);
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        double tail = 0;
        for (auto k = static_cast<std::size_t>(ranks[i]); k < s.size(); ++k) tail += s[k] * s[k];
        const double ratio = std::sqrt(errors[i] / tail);
        EXPECT_GT(ratio, 1 - 1e-6) << rows << " rows, decay " << decay << ", rank " << ranks[i];
        EXPECT_LT(ratio, 1.02) << rows << " rows, decay " << decay << ", rank " << ranks[i];
      }
    }
  }
}

TEST(LowRank, TheLargestGradientsDoNotOverflow) {
  auto matrix = gaussian(300 * 300, 9);
  for (float& x : matrix) x = std::copysign(1e36f, x) * std::min(std::abs(x), 1.0f);
  const auto errors = low_rank_squared_errors(matrix, 300, 300, std::vector<std::int64_t>{1, 4});
  EXPECT_TRUE(std::isfinite(errors[0]));
  EXPECT_LT(errors[1], errors[0]);
}

TEST(Curves, CandidatesAndReference) {
  const std::int64_t matrix[] = {64, 16, 3};
  const auto gradient = gaussian(64 * 48, 5);
  const Layer low_rank = rate_distortion_curve(
      "w", gradient, matrix, parse_policy(Spec::parse("lgreco(family=powersgd)")));
  EXPECT_EQ(low_rank.candidates[low_rank.reference].spec, "powersgd(rank=4)");
  EXPECT_EQ(low_rank.candidates[low_rank.reference].bytes, 4 * (64 + 48) * 4);
  EXPECT_EQ(low_rank.candidates.size(), 17u);  // identity and ranks 1 … 16
  const Layer mixed = rate_distortion_curve("w", gradient, matrix,
                                            parse_policy(Spec::parse("lgreco(family=mixed)")));
  EXPECT_EQ(mixed.candidates.front().spec, "identity");
  EXPECT_EQ(mixed.candidates[mixed.reference].spec, "quantize(bits=4)");
  std::set<std::string> codecs;
  for (const Candidate& c : mixed.candidates) {
    codecs.insert(Spec::parse(c.spec).name);
    EXPECT_TRUE(!c.spec.starts_with("topk") || c.spec.ends_with("values=bf16)")) << c.spec;
    EXPECT_LT(c.error, mixed.norm) << c.spec;
    EXPECT_NO_THROW(make_codec(c.spec)) << c.spec;
  }
  EXPECT_THAT(codecs,
              ::testing::ElementsAre("identity", "powersgd", "quantize", "ternary", "topk"));
  // A vector has no rank: it stays as it is.
  const std::int64_t vector[] = {64 * 48};
  const Layer flat = rate_distortion_curve("b", gradient, vector,
                                           parse_policy(Spec::parse("lgreco(family=powersgd)")));
  EXPECT_EQ(flat.candidates.size(), 1u);
  EXPECT_EQ(uncompressed_layer("b", vector).candidates.size(), 1u);
  const Layer squared = rate_distortion_curve(
      "w", gradient, matrix, parse_policy(Spec::parse("lgreco(error=l2_squared)")));
  const Layer plain =
      rate_distortion_curve("w", gradient, matrix, parse_policy(Spec::parse("lgreco")));
  EXPECT_NEAR(squared.candidates[2].error, std::pow(plain.candidates[2].error, 2), 1e-9);
}

// Where rank 32 sends the layer as it is, that is the reference.
TEST(Curves, RanksThatSaveNothingAreNoCandidates) {
  const auto gradient = gaussian(64 * 64, 8);
  const std::int64_t shape[] = {64, 64};
  const Layer layer = rate_distortion_curve(
      "w", gradient, shape, parse_policy(Spec::parse("lgreco(family=powersgd, reference=32)")));
  EXPECT_EQ(layer.candidates[layer.reference].spec, "identity");
  EXPECT_EQ(layer.candidates[layer.reference].error, 0);
  for (const Candidate& candidate : layer.candidates) EXPECT_LE(candidate.bytes, 4 * 64 * 64);
}

TEST(Curves, BytesOfCodedFactorsAreThoseOfTheirPayload) {
  const std::int64_t shape[] = {64, 48};
  const auto gradient = gaussian(64 * 48, 5);
  for (const std::string factors : {"fp32", "bf16", "int8", "int4", "ecsq(bits=3)"}) {
    const Layer layer = rate_distortion_curve(
        "w", gradient, shape,
        parse_policy(Spec::parse(
            "lgreco(family=powersgd, reference=powersgd(rank=4, factors=" + factors + "))")));
    ASSERT_GT(layer.candidates.size(), 2u) << factors;
    for (const Candidate& candidate : layer.candidates) {
      const CodecPtr codec = make_codec(candidate.spec);
      ConstTensorView input = view_of(std::span(gradient));
      input.shape = shape;
      std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, DType::kFloat32));
      EXPECT_EQ(candidate.bytes, static_cast<double>(codec->compress(input, {}, payload)))
          << candidate.spec;
    }
  }
}

TEST(Curves, EveryIterationSendsTheFactorsAgain) {
  const Spec once = Spec::parse("powersgd(rank=4)");
  const Spec thrice = Spec::parse("powersgd(rank=4, iterations=3)");
  EXPECT_EQ(payload_bytes(thrice, {{64, 48}}), 3 * payload_bytes(once, {{64, 48}}));
}

TEST(Curves, RanksEndWhereTheCodecDoes) {
  const std::int64_t matrix[] = {4000, 4000};
  for (const char* reference : {"300", "1024"}) {
    const Policy policy = parse_policy(
        Spec::parse(std::string("lgreco(family=powersgd, reference=") + reference + ")"));
    const CandidateSet set = candidate_set(policy, matrix);
    for (const Spec& spec : set.specs) EXPECT_NO_THROW(make_codec(spec)) << spec.str();
    EXPECT_EQ(set.specs.back().str(), "powersgd(rank=1024)");
  }
}

TEST(Curves, BytesOfSparseCodecsAreWhatTheyWrite) {
  for (const std::int64_t numel : {1000, 30000, 300000}) {
    const auto gradient = gaussian(static_cast<std::size_t>(numel), 7);
    for (const char* text :
         {"topk(density=0.0005)", "topk(density=0.01)", "topk(density=0.1, values=bf16)",
          "topk(density=0.5)", "topk(density=1, values=fp16)", "ternary(density=0.003)",
          "ternary(density=0.03)", "ternary(density=0.3)"}) {
      const Spec spec = Spec::parse(text);
      const CodecPtr codec = make_codec(spec);
      std::vector<std::byte> bytes(codec->max_compressed_bytes(numel, DType::kFloat32));
      const auto written =
          static_cast<double>(codec->compress(view_of(std::span(gradient)), {}, bytes));
      EXPECT_NEAR(payload_bytes(spec, {{numel}}) / written, 1, numel < 10000 ? 0.1 : 0.015)
          << numel << " by " << text;
    }
  }
}

TEST(Curves, AGradientOfZerosKeepsTheReference) {
  const std::int64_t shape[] = {64, 64};
  const std::vector<float> zeros(64 * 64, 0.0f);
  const Layer layer =
      rate_distortion_curve("w", zeros, shape, parse_policy(Spec::parse("lgreco(family=topk)")));
  ASSERT_EQ(layer.candidates.size(), 1u);
  EXPECT_EQ(layer.candidates[layer.reference].spec, "topk(density=0.01)");
}

TEST(Curves, RefusesWhatIsNotFinite) {
  auto gradient = gaussian(100, 6);
  gradient[50] = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t shape[] = {100};
  EXPECT_THROW(rate_distortion_curve("w", gradient, shape, Policy{}), InvalidArgument);
}

TEST(Policy, DefaultsAndEveryParameter) {
  EXPECT_EQ(parse_policy(Spec::parse("lgreco")).str(),
            "lgreco(family=quantize, reference=quantize(bits=4), budget=1, constraint=error, "
            "error=l2, objective=bytes, period=500, warmup=100, first=100, window=10, cap=0.95)");
  const Policy policy = parse_policy(Spec::parse(
      "lgreco(family=powersgd, reference=32, budget=1.5, constraint=bytes, error=l2_squared, "
      "objective=time, period=50, warmup=0, first=5, window=5, cap=0.5)"));
  EXPECT_EQ(policy.reference.str(), "powersgd(rank=32)");
  EXPECT_EQ(policy.allocation().max_relative_error, 0.25);
  EXPECT_EQ(parse_policy(Spec::parse(policy.str())).str(), policy.str());
}

TEST(Policy, ErrorsSayWhatWouldBeRight) {
  const std::pair<const char*, const char*> cases[] = {
      {"topk", "expected an lgreco(...) policy"},
      {"lgreco(family=quantise)", "did you mean quantize?"},
      {"lgreco(reference=9)", "an integer from 1 to 8, got '9'"},
      {"lgreco(family=powersgd, reference=1025)", "an integer from 1 to 1024, got '1025'"},
      {"lgreco(family=topk, reference=0)", "a number in (0, 1], got '0'"},
      {"lgreco(family=topk, reference=quantize(bits=4))", "need family=mixed"},
      {"lgreco(family=mixed, reference=4)", "must be a codec spec"},
      {"lgreco(reference=onebit(x=1))", "made of quantize, topk, ternary and powersgd"},
      {"lgreco(period=5, window=6)", "window=6, period=5"},
      {"lgreco(reference=quantize(bits=4, error_feedback=on))", "to lgreco(...) itself"},
      {"lgreco(family=powersgd, reference=powersgd(rank=4, iteration=2))", "iterations"},
      {"lgreco(budget=0)", "in (0, 1000]"},
      {"lgreco(perod=5)", "did you mean period?"}};
  for (const auto& [text, expected] : cases) {
    try {
      parse_policy(Spec::parse(text));
      ADD_FAILURE() << text;
    } catch (const InvalidArgument& error) {
      EXPECT_THAT(error.what(), HasSubstr(expected)) << text;
    }
  }
}

}  // namespace
}  // namespace thinwire::lgreco
