#include "thinwire/torch_ext/adaptive/adaptive_plan.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include <map>
#include <mutex>

#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/adaptive/candidate_costs.h"
#include "thinwire/torch_ext/adaptive/gradient_statistics.h"

namespace thinwire {
namespace {

using testing::RankContext;
using testing::run_ranks;

const std::vector<LayerInfo> kLayers = {
    {"loud", {32, 32}}, {"quiet", {128, 128}}, {"bias", {32}}, {"low", {64, 40}}};

// Gradients of very unequal layers: "loud" is small but a thousand times as large in value, "low"
// is nearly of rank one.
comm::Bucket gradients(int rank, std::int64_t step) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(97 * step + rank));
  const auto random = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::kFloat);
  };
  comm::Bucket bucket;
  std::vector<at::Tensor> parts;
  std::int64_t offset = 0;
  for (const LayerInfo& layer : kLayers) {
    at::Tensor values = random(layer.shape);
    if (layer.name == "loud") values *= 1000;
    if (layer.name == "low") values = random({64, 1}).matmul(random({1, 40})) + 0.01 * values;
    bucket.layers.push_back({layer.name, offset, layer.shape});
    offset += values.numel();
    parts.push_back(values.flatten());
  }
  bucket.buffer = at::cat(parts);
  return bucket;
}

at::Tensor part_of(const comm::Bucket& bucket, std::size_t layer) {
  return bucket.buffer.narrow(0, bucket.layers[layer].offset, bucket.layers[layer].numel());
}

// What GradientExchange does on its thread.
struct Trainer {
  Trainer(RankContext& ctx, const std::string& spec)
      : averager(ctx.group),
        adaptive(ctx.group, *make_plan(kLayers, spec).adaptive, make_plan(kLayers, spec).plan, 0,
                 std::nullopt) {}

  // The averaged bucket.
  comm::Bucket step(int rank, std::int64_t step) {
    comm::Bucket bucket = gradients(rank, step);
    if (adaptive.begin_step(step)) switches.push_back(step);
    adaptive.observe(bucket, step);
    averager.average(bucket, step < adaptive.schedule().warmup() ? comm::Plan{} : adaptive.plan(),
                     step);
    adaptive.finish_step(step);
    if (adaptive.schedule().closes_window(step)) adaptive.close_window();
    return bucket;
  }

  comm::BucketAverager averager;
  AdaptivePlan adaptive;
  std::vector<std::int64_t> switches;
};

class AdaptivePlanOnRanks : public ::testing::TestWithParam<int> {};

TEST_P(AdaptivePlanOnRanks, SwitchesToOnePlanAtTheSameSteps) {
  std::mutex mutex;
  std::set<std::string> histories;
  run_ranks(GetParam(), [&](RankContext& ctx) {
    Trainer trainer(ctx, "lgreco(family=mixed, period=4, warmup=3, first=0, window=2)");
    std::string history;
    for (int step = 0; step < 14; ++step) {
      trainer.step(ctx.rank, step);
      history += trainer.adaptive.plan().text() + "\n";
    }
    // After three steps of warm-up and two of lag, then every four.
    EXPECT_EQ(trainer.switches, (std::vector<std::int64_t>{5, 9, 13}));
    EXPECT_EQ(trainer.adaptive.summary().plans, 3);
    const std::lock_guard lock(mutex);
    histories.insert(history);
  });
  EXPECT_EQ(histories.size(), 1u) << "all ranks had the same plan in every step";
}

// The plan is what the allocator gives for the mean of the raw gradients, although the residuals
// of error feedback are by then larger than the gradients.
TEST_P(AdaptivePlanOnRanks, SolvesForTheMeanOfTheRawGradients) {
  const int world = GetParam();
  const std::string spec =
      "lgreco(family=topk, period=10, warmup=0, first=0, window=3, constraint=bytes)";
  const AdaptiveCompression compression = *make_plan(kLayers, spec).adaptive;
  // By a window's end: the means, of the owners.
  std::map<std::int64_t, std::vector<std::vector<float>>> means;
  for (const std::int64_t end : {3, 13}) means[end].resize(compression.layers.size());
  run_ranks(world, [&](RankContext& ctx) {
    for (auto& [end, of_layers] : means) {
      GradientStatistics statistics(compression.layers, ctx.rank, world);
      for (std::int64_t step = end - 3; step < end; ++step) {
        statistics.add(gradients(ctx.rank, step));
        statistics.finish_step();
      }
      statistics.exchange(*ctx.group, 1);
      for (std::size_t i = 0; i < of_layers.size(); ++i)
        if (statistics.owner(i) == ctx.rank) of_layers[i] = statistics.values(i);
    }
  });
  const auto expected_after = [&](std::int64_t end) {
    lgreco::CurveCosts costs;
    costs.bytes = [&](const Spec& candidate, std::span<const std::int64_t> shape) {
      return candidate_bytes(candidate, shape, world);
    };
    std::vector<lgreco::Layer> layers;
    for (std::size_t i = 0; i < compression.layers.size(); ++i) {
      const LayerInfo& layer = compression.layers[i];
      layers.push_back(lgreco::rate_distortion_curve(layer.name, means[end][i], layer.shape,
                                                     compression.policy, costs));
    }
    const auto options = compression.policy.allocation();
    return lgreco::plan_text(lgreco::make_plan(layers, options, lgreco::allocate(layers, options)));
  };
  run_ranks(world, [&](RankContext& ctx) {
    Trainer trainer(ctx, spec);
    for (int step = 0; step < 16; ++step) {
      trainer.step(ctx.rank, step);
      if (step == 5) {
        EXPECT_EQ(lgreco::plan_text(*trainer.adaptive.allocation()), expected_after(3));
      }
    }
    EXPECT_EQ(trainer.adaptive.summary().plans, 2);
    EXPECT_EQ(lgreco::plan_text(*trainer.adaptive.allocation()), expected_after(13));
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, AdaptivePlanOnRanks, ::testing::Values(1, 2, 3, 4));

// Over all steps, what was applied and what is left over add up to the gradients, across changes of
// the plan, also where a layer gave up error feedback altogether.
TEST(AdaptivePlan, NothingIsLostWhenThePlanChanges) {
  constexpr int kWorld = 2, kSteps = 16;
  std::vector<std::vector<at::Tensor>> residuals(kWorld);
  std::vector<at::Tensor> applied;
  run_ranks(kWorld, [&](RankContext& ctx) {
    Trainer trainer(ctx,
                    "lgreco(family=topk, reference=0.1, period=6, warmup=0, first=0, window=2, "
                    "constraint=bytes)");
    std::vector<at::Tensor> sums(kLayers.size());
    for (int step = 0; step < kSteps; ++step) {
      const comm::Bucket mean = trainer.step(ctx.rank, step);
      for (std::size_t i = 0; i < kLayers.size(); ++i) {
        const at::Tensor part = part_of(mean, i).to(at::kDouble);
        sums[i] = sums[i].defined() ? sums[i] + part : part;
      }
    }
    EXPECT_GE(trainer.switches.size(), 2u);
    // The loud layer gets all it wants, so what it was owed had to be sent along.
    EXPECT_EQ(trainer.adaptive.plan().of("loud").text(), "none");
    EXPECT_NE(trainer.adaptive.plan().of("quiet").text(), "none");
    for (std::size_t i = 0; i < kLayers.size(); ++i) {
      const auto left = trainer.averager.feedback().residual(kLayers[i].name);
      at::Tensor residual = at::zeros_like(sums[i]);
      for (std::size_t k = 0; k < left.size(); ++k) {
        residual[static_cast<std::int64_t>(k)] = static_cast<double>(left[k]);
      }
      if (kLayers[i].name == "loud") {
        EXPECT_EQ(residual.abs().max().item<double>(), 0);
      }
      residuals[static_cast<std::size_t>(ctx.rank)].push_back(residual);
    }
    if (ctx.rank == 0) applied = sums;
  });
  for (std::size_t i = 0; i < kLayers.size(); ++i) {
    at::Tensor sent = applied[i] + (residuals[0][i] + residuals[1][i]) / kWorld;
    at::Tensor wanted = at::zeros_like(sent);
    for (int step = 0; step < kSteps; ++step) {
      for (int rank = 0; rank < kWorld; ++rank) {
        wanted += part_of(gradients(rank, step), i).to(at::kDouble) / kWorld;
      }
    }
    EXPECT_LT(((sent - wanted).norm() / wanted.norm()).item<double>(), 1e-5) << kLayers[i].name;
  }
}

TEST(AdaptivePlan, CountsWhatItCosts) {
  run_ranks(2, [&](RankContext& ctx) {
    Trainer trainer(ctx, "lgreco(period=5, warmup=0, first=0, window=1)");
    const auto begin = Clock::now();
    for (int step = 0; step < 5; ++step) trainer.step(ctx.rank, step);
    const AdaptationSummary of_first_plan = trainer.adaptive.summary();
    EXPECT_EQ(of_first_plan.plans, 1);
    for (int step = 5; step < 9; ++step) trainer.step(ctx.rank, step);
    const double elapsed = seconds_since(begin);
    const AdaptationSummary& summary = trainer.adaptive.summary();
    EXPECT_EQ(summary.plans, 2);
    // Every plan costs something of each kind, and no kind more than there was time.
    using Seconds = double AdaptationSummary::*;
    for (const Seconds part :
         {&AdaptationSummary::statistics_seconds, &AdaptationSummary::exchange_seconds,
          &AdaptationSummary::curve_seconds, &AdaptationSummary::solve_seconds}) {
      EXPECT_GT(summary.*part, of_first_plan.*part);
      EXPECT_LT(summary.*part, elapsed);
    }
    // Two rounds of what the other rank owns, and of a table of some hundred bytes.
    const double elements = 1024 + 16384 + 2560;
    EXPECT_LT(static_cast<double>(summary.sent_bytes), 2 * (2 * elements + 2000));
    EXPECT_GT(summary.sent_bytes, 2 * 2 * 2560u);
    EXPECT_EQ(trainer.adaptive.statistics().bytes(), 0u) << "between two windows";
  });
}

TEST(AdaptivePlan, AModelWithoutLayersToCompressIsLeftAlone) {
  run_ranks(2, [&](RankContext& ctx) {
    CompressionOptions options("lgreco(period=2, warmup=0, first=0, window=1)");
    options.min_numel = 1 << 20;
    const auto adaptive = make_plan(kLayers, options).adaptive;
    ASSERT_TRUE(adaptive.has_value());
    EXPECT_TRUE(adaptive->layers.empty());
    AdaptivePlan plan(ctx.group, *adaptive, make_plan(kLayers, options).plan, 0, std::nullopt);
    for (int step = 0; step < 6; ++step) {
      EXPECT_FALSE(plan.begin_step(step));
      const comm::Bucket bucket = gradients(ctx.rank, step);
      plan.observe(bucket, step);
      plan.finish_step(step);
      if (plan.schedule().closes_window(step)) plan.close_window();
    }
    EXPECT_EQ(plan.summary().plans, 0);
  });
}

}  // namespace
}  // namespace thinwire
