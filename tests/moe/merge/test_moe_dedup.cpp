// Merging rows: gradients against finite differences with the clusters held fixed, the cases in
// which it must be exact, calibration, the guard, telemetry.

#include <gtest/gtest.h>

#include <limits>
#include <mutex>

#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;

MoEOptions options_with(const std::string& dedup) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = 3, .top_k = 2};
  options.hidden = 5;
  options.balance_factor = 0;
  options.dedup = parse_dedup(dedup);
  options.seed = 5;
  return options;
}

// Tokens near a few centres, so that rows do merge.
at::Tensor similar_tokens(std::int64_t count, double spread, std::uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  const at::Tensor centres = at::randn({4, kDim}, generator, at::kDouble);
  const at::Tensor which = at::randint(4, {count}, generator, at::kLong);
  return centres.index_select(0, which) + spread * at::randn({count, kDim}, generator, at::kDouble);
}

at::Tensor loss_of(const at::Tensor& output) {
  const at::Tensor factor =
      at::arange(1, output.numel() + 1, at::kDouble).reshape(output.sizes()) * 0.1;
  return (output * factor + output.square()).sum();
}

double largest(const at::Tensor& x) {
  return x.numel() == 0 ? 0 : x.abs().max().item<double>();
}

// E(x) = scale · x + shift.
class AffineExpert : public Expert {
 public:
  explicit AffineExpert(double scale, double shift) : Expert("AffineExpert"), scale_(scale) {
    shift_ = register_parameter("shift", at::full({kDim}, shift));
  }
  at::Tensor forward(const at::Tensor& rows) override { return rows * scale_ + shift_; }

 private:
  double scale_;
  at::Tensor shift_;
};

class Clustered : public ::testing::TestWithParam<std::tuple<int, double>> {};

// Perturbations small enough that no hash changes leave the clusters as they are, so central
// differences of the layer itself are those with clusters held fixed; that they are is checked.
TEST_P(Clustered, GradientEqualsFiniteDifferences) {
  const auto [ranks, compensation] = GetParam();
  const MoEOptions options =
      options_with(concat("lsh(hashes=3, radius=1, compensation=", compensation, ")"));
  run_ranks(ranks, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    layer.to(at::kDouble);
    at::Tensor x = similar_tokens(10, 0.1, 20 + static_cast<std::uint64_t>(context.rank));
    x.requires_grad_();
    const MoEOutput result = layer.forward(x);
    const auto rows_sent = result.counters.dedup.rows_sent;
    EXPECT_LT(rows_sent, result.counters.dedup.rows);
    EXPECT_GT(result.counters.dedup.worst_radius, 0.0);
    loss_of(result.output).backward();

    // Experts are shared, but a token only changes the outputs of its own rank.
    const at::NoGradGuard no_grad;
    const auto loss_at = [&](at::Tensor& changed, std::int64_t i, double step) {
      at::Tensor flat = changed.detach().view({-1});
      const double before = flat[i].item<double>();
      flat[i] = before + step;
      const MoEOutput moved = layer.forward(x);
      flat[i] = before;
      EXPECT_EQ(moved.counters.dedup.rows_sent, rows_sent);
      return loss_of(moved.output).item<double>();
    };
    constexpr double kStep = 1e-6;
    const auto expect_gradient = [&](at::Tensor& variable, const char* what) {
      const double scale = std::max(1.0, largest(variable.grad()));
      for (std::int64_t i = 0; i < variable.numel(); ++i) {
        const double up = loss_at(variable, i, kStep);
        const double down = loss_at(variable, i, -kStep);
        EXPECT_NEAR(variable.grad().view({-1})[i].item<double>(), (up - down) / (2 * kStep),
                    2e-6 * scale)
            << what << " element " << i;
      }
    };
    expect_gradient(x, "token");
    at::Tensor gate = layer.router().parameters()[0];
    expect_gradient(gate, "gate");
    if (context.size == 1) {
      for (at::Tensor& parameter : layer.expert_parameters()) expect_gradient(parameter, "expert");
    }
  });
}

INSTANTIATE_TEST_SUITE_P(RanksAndFactors, Clustered,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::Values(0.0, 0.5, 1.0)));

TEST(Dedup, AllSingletonsEqualTheExactLayerBitForBit) {
  for (const char* dedup : {"lsh(radius=0)", "duplicates"}) {
    run_ranks(2, [&](RankContext& context) {
      MoELayer exact(options_with("off"), context.group);
      MoELayer merging(options_with(dedup), context.group);
      const at::Tensor tokens =
          similar_tokens(9, 0.1, 30 + static_cast<std::uint64_t>(context.rank)).to(at::kFloat);
      const at::Tensor a = tokens.clone().requires_grad_();
      const at::Tensor b = tokens.clone().requires_grad_();
      const MoEOutput expected = exact.forward(a);
      const MoEOutput actual = merging.forward(b);
      EXPECT_TRUE(actual.counters.dedup.merged);
      EXPECT_EQ(actual.counters.dedup.rows_sent, actual.counters.dedup.rows);
      EXPECT_TRUE(at::equal(actual.output, expected.output));
      expected.output.square().sum().backward();
      actual.output.square().sum().backward();
      EXPECT_TRUE(at::equal(a.grad(), b.grad()));
      for (std::size_t i = 0; i < exact.parameters().size(); ++i) {
        EXPECT_TRUE(at::equal(exact.parameters()[i].grad(), merging.parameters()[i].grad()));
      }
    });
  }
}

TEST(Dedup, EqualTokensSendOneRowPerExpert) {
  for (const char* dedup : {"lsh(radius=0)", "duplicates"}) {
    MoELayer exact(options_with("off"), {});
    MoELayer merging(options_with(dedup), {});
    const at::Tensor tokens =
        similar_tokens(1, 0, 1).to(at::kFloat).expand({50, kDim}).contiguous();
    const MoEOutput result = merging.forward(tokens);
    EXPECT_EQ(result.counters.dedup.rows, 100);
    EXPECT_EQ(result.counters.dedup.rows_sent, 2);  // k = 2
    EXPECT_EQ(result.counters.dedup.worst_radius, 0);
    EXPECT_LE(largest(result.output - exact.forward(tokens).output), 1e-6);
  }
}

// Outputs and token gradients.
TEST(Dedup, AffineExpertsAreExactUnderTheirOwnFactor) {
  const at::Tensor tokens = similar_tokens(40, 0.2, 2);
  const auto error = [&](const std::string& dedup, double scale) {
    MoEOptions options = options_with("off");
    options.factory = [&](std::int64_t expert) {
      return std::make_shared<AffineExpert>(scale, 0.5 + static_cast<double>(expert));
    };
    MoELayer exact(options, {});
    options.dedup = parse_dedup(dedup);
    MoELayer merging(options, {});
    exact.to(at::kDouble);
    merging.to(at::kDouble);
    const at::Tensor a = tokens.clone().requires_grad_();
    const at::Tensor b = tokens.clone().requires_grad_();
    const MoEOutput result = merging.forward(b);
    EXPECT_LT(result.counters.dedup.rows_sent, 40);
    const at::Tensor expected = exact.forward(a).output;
    loss_of(expected).backward();
    loss_of(result.output).backward();
    return std::max(largest(expected - result.output), largest(a.grad() - b.grad()));
  };
  EXPECT_LE(error("lsh(hashes=2, radius=1, compensation=1)", 1.0), 1e-10);
  EXPECT_LE(error("lsh(hashes=2, radius=1, compensation=0.25)", 0.25), 1e-10);
  EXPECT_GE(error("lsh(hashes=2, radius=1, compensation=0)", 1.0), 1e-3);
  EXPECT_GE(error("lsh(hashes=2, radius=1, compensation=1)", 0.25), 1e-3);
}

TEST(Dedup, CalibrationFindsTheFactorOfLinearExpertsOnAllRanks) {
  MoEOptions options = options_with("lsh(hashes=2, radius=1, compensation=calibrated, probes=8)");
  options.factory = [](std::int64_t) { return std::make_shared<AffineExpert>(0.3, 1.0); };
  run_ranks(2, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    layer.to(at::kDouble);
    for (std::uint64_t step = 0; step < 3; ++step) {
      // Rank 1 has no tokens: its factor comes from rank 0.
      const at::Tensor x =
          similar_tokens(context.rank == 0 ? 60 : 0, 0.2, 50 + step).requires_grad_();
      const MoEOutput result = layer.forward(x);
      EXPECT_EQ(result.counters.dedup.compensation, step == 0 ? 1.0 : layer.dedup().compensation());
      loss_of(result.output).backward();
    }
    EXPECT_NEAR(layer.dedup().compensation(), 0.3, 1e-9);
  });
}

TEST(Dedup, CodecLossIsPartOfTheResidual) {
  // E(x) = x + b: whatever the codec does to the centroids, full compensation restores x.
  MoEOptions options = options_with("lsh(hashes=2, radius=1)");
  options.factory = [](std::int64_t e) {
    return std::make_shared<AffineExpert>(1.0, static_cast<double>(e));
  };
  const at::Tensor tokens = similar_tokens(30, 0.2, 3).to(at::kFloat);
  options.rows.dispatch = "quantize(bits=2)";
  MoELayer merging(options, {});
  const at::Tensor coded = merging.forward(tokens).output;
  options.dedup = {};
  MoELayer lossy(options, {});
  options.rows.dispatch = "";
  MoELayer exact(options, {});
  const at::Tensor expected = exact.forward(tokens).output;
  EXPECT_LE(largest(coded - expected), 1e-5);
  EXPECT_GE(largest(lossy.forward(tokens).output - expected), 1e-2);
}

TEST(Dedup, StartsAfterWarmUpAndSparesEvaluation) {
  const at::Tensor tokens = similar_tokens(40, 0.05, 4).to(at::kFloat);
  MoELayer layer(options_with("lsh(hashes=2, radius=1, start_after=2)"), {});
  for (const bool expected : {false, false, true, true}) {
    EXPECT_EQ(layer.forward(tokens).counters.dedup.merged, expected);
  }
  layer.eval();
  EXPECT_FALSE(layer.forward(tokens).counters.dedup.merged);
  MoELayer asked(options_with("lsh(hashes=2, radius=1, start_after=2, evaluation=on)"), {});
  asked.eval();
  EXPECT_TRUE(asked.forward(tokens).counters.dedup.merged);
}

TEST(Dedup, TheGuardSendsExactlyOnAFastLinkAndMergesOnASlowOne) {
  const at::Tensor tokens = similar_tokens(200, 0.02, 5).to(at::kFloat);
  MoELayer fast(options_with("lsh(hashes=2, radius=1, bandwidth=1e12)"), {});
  MoELayer slow(options_with("lsh(hashes=2, radius=1, bandwidth=1e6)"), {});
  MoELayer off(options_with("off"), {});
  for (int step = 0; step < 3; ++step) {
    const MoEOutput exact = fast.forward(tokens);
    EXPECT_FALSE(exact.counters.dedup.merged);
    EXPECT_TRUE(exact.counters.dedup.refused_by_guard);
    EXPECT_EQ(exact.counters.dedup.rows_sent, exact.counters.dedup.rows);
    EXPECT_TRUE(at::equal(exact.output, off.forward(tokens).output));
    EXPECT_TRUE(slow.forward(tokens).counters.dedup.merged);
  }
  // Rows that do not merge are not worth the loss either.
  MoELayer different(options_with("lsh(radius=0, bandwidth=1e6)"), {});
  EXPECT_TRUE(different.forward(tokens).counters.dedup.refused_by_guard);
}

TEST(Dedup, RowsFallAndErrorRisesWithShorterPrefixes) {
  const at::Tensor tokens = similar_tokens(300, 0.3, 6).to(at::kFloat);
  std::int64_t rows = 0;
  double error = 1e30;
  for (int prefix = 0; prefix <= 6; ++prefix) {
    MoELayer layer(options_with(concat("lsh(prefix=", prefix, ", radius=1e30)")), {});
    const MergeSummary counters = layer.forward(tokens).counters.dedup;
    EXPECT_EQ(counters.prefix, prefix);
    EXPECT_GE(counters.rows_sent, rows);
    EXPECT_LE(counters.relative_error, error * (1 + 1e-6));
    rows = counters.rows_sent;
    error = counters.relative_error;
  }
  EXPECT_GT(rows, 3);
}

TEST(Dedup, NonFiniteTokensOnlySpoilThemselves) {
  for (const char* dedup : {"off", "lsh(hashes=2, radius=1)", "duplicates"}) {
    MoELayer layer(options_with(dedup), {});
    at::Tensor tokens = similar_tokens(30, 0.05, 7).to(at::kFloat);
    tokens[3].fill_(std::numeric_limits<float>::quiet_NaN());
    tokens[8][2] = std::numeric_limits<float>::infinity();
    const at::Tensor finite = at::isfinite(layer.forward(tokens).output).all(1);
    for (std::int64_t t = 0; t < 30; ++t) {
      EXPECT_EQ(finite[t].item<bool>(), t != 3 && t != 8) << dedup << ", token " << t;
    }
  }
}

TEST(DedupSpec, RoundTripsAndNamesMistakes) {
  for (const char* text :
       {"off", "duplicates(evaluation=on)",
        "lsh(hashes=6, hash_dim=16, rotation=hadamard, prefix=4, radius=0.4, compensation=1, "
        "probes=16, start_after=0, evaluation=off, bandwidth=0, hash_rate=1.5e+08, "
        "least_saving=0.02)",
        "lsh(hashes=8, hash_dim=0, rotation=gaussian, rows=0.25, radius=0.5, "
        "compensation=calibrated, probes=4, start_after=100, evaluation=on, bandwidth=125, "
        "hash_rate=2000, least_saving=0.5)"}) {
    EXPECT_EQ(spec_of(parse_dedup(text)), text);
  }
  EXPECT_EQ(parse_dedup("lsh").clusters.radius, 0.4);
  EXPECT_THROW(parse_dedup("lhs"), InvalidArgument);
  EXPECT_THROW(parse_dedup("lsh(hashs=3)"), InvalidArgument);
  EXPECT_THROW(parse_dedup("lsh(hashes=0)"), InvalidArgument);
  EXPECT_THROW(parse_dedup("lsh(rows=0.2, error=0.1)"), InvalidArgument);
  EXPECT_THROW(parse_dedup("lsh(compensation=2)"), InvalidArgument);
}

TEST(DedupSpec, HoldsWhatALayerWasGivenWithoutAText) {
  DedupOptions options = parse_dedup("lsh(hashes=3)");
  options.clusters.choice.prefix = 9;
  options.clusters.radius = std::numeric_limits<double>::infinity();
  options.hash_rate = 2e6;
  options.least_saving = 0.25;
  const Dedup dedup(options, kDim, 0, 0);
  const std::string text = spec_of(dedup.options());
  const DedupOptions again = parse_dedup(text);
  EXPECT_EQ(again.clusters.choice.prefix, 3);
  EXPECT_EQ(again.clusters.radius, options.clusters.radius);
  EXPECT_EQ(again.hash_rate, 2e6);
  EXPECT_EQ(again.least_saving, 0.25);
  EXPECT_EQ(spec_of(again), text);
  options.least_saving = 2;
  EXPECT_THROW(Dedup(options, kDim, 0, 0), InvalidArgument);
}

}  // namespace
}  // namespace thinwire::moe
