#include "thinwire/torch_ext/adaptive/automatic_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/counting_group.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"
#include "thinwire/torch_ext/ddp/measured_steps.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::CollectiveLog;
using testing::counting_group;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::errors_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RankContext;
using testing::run_ranks;
using ::testing::ThrowsMessage;

const std::vector<LayerInfo> kLayers = {{"big", {64, 64}}, {"bias", {64}}, {"named", {64, 64}}};

CompressionPlan made(const std::string& spec) {
  CompressionOptions options(spec);
  options.overrides = {{"named", "topk(density=0.1)"}};
  return make_plan(kLayers, options);
}

// Makes the calls of a training whose steps take as long as the setting of "big" says; each rank
// sees something else of it.
class Steps {
 public:
  Steps(const RankContext& ctx, const std::string& spec, std::int64_t first = 0)
      : rank_(ctx.rank), plan_(ctx.group, *made(spec).automatic, made(spec).plan, first) {}

  // The settings that `big` had, each with the step from which on.
  std::vector<std::string> run(std::int64_t from, std::int64_t to,
                               const std::map<std::string, double>& exposed) {
    std::vector<std::string> changes;
    for (std::int64_t step = from; step < to; ++step) {
      const auto measure = [&](std::int64_t) -> MeasuredSteps {
        // Only what the slowest of the ranks waits for counts, and it waits least.
        const double waits = exposed.at(plan_.summary().setting);
        return {{.step = 1 + waits - 0.1 * rank_, .exposed = waits + 5 * rank_, .exchange = waits}};
      };
      if (plan_.begin_step(step, measure)) {
        changes.push_back(concat(step, " ", plan_.summary().setting));
      }
      EXPECT_FALSE(plan_.begin_step(step, measure)) << "the second bucket of a step";
    }
    return changes;
  }

  const AutomaticPlan& plan() const { return plan_; }

 private:
  int rank_;
  AutomaticPlan plan_;
};

const std::map<std::string, double> kSlow = {{"none", 4},
                                             {"cast(bf16)", 2},
                                             {"quantize(bits=8)", 1},
                                             {"quantize(bits=4)", 0.005},
                                             {"ecsq(as=quantize(bits=4))", 0.004}};
const std::map<std::string, double> kFast = {{"none", 0.01}, {"quantize(bits=4)", 0.0001}};

TEST(AutomaticPlan, TriesOneSettingAfterTheOtherAndSettles) {
  run_ranks(3, [](RankContext& ctx) {
    Steps steps(ctx, "auto", /*first=*/10);
    EXPECT_THAT(steps.run(0, 100, kSlow),
                ElementsAre("12 cast(bf16)", "14 quantize(bits=8)", "16 quantize(bits=4)"))
        << "steps of seconds, most of which is waiting, are not made again to be measured better";
    EXPECT_THAT(steps.plan().plan().of("big").text(), HasSubstr("quantize(bits=4"));
    EXPECT_EQ(steps.plan().plan().of("bias").text(), "none");
    EXPECT_THAT(steps.plan().plan().of("named").text(), HasSubstr("topk"));
    const AutomaticSummary& summary = steps.plan().summary();
    EXPECT_EQ(summary.searches, 1);
    EXPECT_THAT(summary.reason, AllOf(HasSubstr("5 ms after the backward pass, which hides it"),
                                      HasSubstr("5000 ms with none")));
    ASSERT_EQ(summary.tried.size(), 4u);
    EXPECT_EQ(summary.tried[0].setting, "none");
    EXPECT_EQ(summary.tried[0].step, 5);
  });
}

TEST(AutomaticPlan, StaysUncompressedWhereThatHides) {
  run_ranks(2, [](RankContext& ctx) {
    Steps steps(ctx, "auto(error_feedback=off)");
    EXPECT_THAT(steps.run(0, 60, kFast), IsEmpty());
    EXPECT_EQ(steps.plan().summary().setting, "none");
    EXPECT_EQ(steps.plan().summary().searches, 1);
  });
}

// Where plain averaging hides, all that `auto` adds to it is 24 bytes in eight steps.
TEST(AutomaticPlan, CostsOneSmallAllReduceInEightStepsWhereAveragingHides) {
  run_ranks(2, [](RankContext& ctx) {
    const auto log = std::make_shared<CollectiveLog>();
    const auto group = counting_group(ctx, log);
    const CompressionPlan plan = made("auto");
    AutomaticPlan automatic(group, *plan.automatic, plan.plan, 0);
    comm::BucketAverager averager(group);
    const auto measure = [](std::int64_t) -> MeasuredSteps {
      return {{.step = 1, .exposed = 0.01, .exchange = 0.5}};
    };
    const auto train = [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t step = from; step < to; ++step) {
        automatic.begin_step(step, measure);
        comm::Bucket bucket{0, at::ones({64 * 64}), {{"big", 0, {64, 64}}}};
        averager.average(bucket, automatic.plan(), step);
      }
    };
    train(0, 40);
    EXPECT_EQ(automatic.summary().setting, "none");
    log->clear();
    train(40, 56);
    std::map<std::string, int> counts;
    for (const std::string& call : *log) ++counts[call];
    EXPECT_THAT(counts, ElementsAre(std::pair<const std::string, int>("all_reduce 16384", 16),
                                    std::pair<const std::string, int>("all_reduce 24", 2)));
  });
}

TEST(AutomaticPlan, SearchesAnewAfterStepsThatItDidNotSee) {
  run_ranks(2, [](RankContext& ctx) {
    Steps steps(ctx, "auto");
    steps.run(0, 60, kSlow);
    EXPECT_THAT(steps.run(1000, 1060, kFast), ElementsAre("1000 none"));
    EXPECT_EQ(steps.plan().plan().of("big").text(), "none");
  });
}

TEST(AutomaticPlan, FollowsTheNetworkWithinTwentySteps) {
  run_ranks(2, [](RankContext& ctx) {
    Steps steps(ctx, "auto");
    EXPECT_THAT(steps.run(0, 50, kFast), IsEmpty());
    const auto changes = steps.run(50, 150, kSlow);
    ASSERT_EQ(changes.size(), 3u);
    EXPECT_LE(std::stoi(changes.front()), 70);
    EXPECT_THAT(changes.back(), HasSubstr("quantize(bits=4)"));
  });
}

// What a clock sees of a training on two hosts at 100 Mbit/s, in milliseconds.
struct SeenStep {
  double backward, exposed, rest;  // what is neither: the forward pass, the optimizer
};

MeasuredSteps seen(const SeenStep& step) {
  StepProfile profile;
  profile.backward = step.backward / 1e3;
  profile.exposed = step.exposed / 1e3;
  profile.step = (step.backward + step.exposed + step.rest) / 1e3;
  profile.exchange = step.exposed / 1e3;
  return measured_steps(profile);
}

// The coder's work slows the computing that it hides behind, and that before it.
TEST(AutomaticPlan, WhatEndsSoonerAfterTheForwardPassMayMakeStepsLonger) {
  run_ranks(2, [](RankContext& ctx) {
    const std::map<std::string, SeenStep> steps = {{"none", {18, 125, 16}},
                                                   {"cast(bf16)", {18, 89, 16}},
                                                   {"quantize(bits=8)", {19, 24, 15}},
                                                   {"quantize(bits=4)", {19, 1.5, 15}},
                                                   {"ecsq(as=quantize(bits=4))", {18.4, 1.4, 20}}};
    const CompressionPlan plan = made("auto");
    AutomaticPlan automatic(ctx.group, *plan.automatic, plan.plan, 0);
    std::map<std::string, int> taken;
    for (std::int64_t step = 0; step < 100; ++step) {
      automatic.begin_step(step, [&](std::int64_t) -> MeasuredSteps {
        return seen(steps.at(automatic.summary().setting));
      });
      ++taken[automatic.summary().setting];
    }
    EXPECT_EQ(taken["none"] + taken["cast(bf16)"], 4) << "two steps rule out what is that slow";
    EXPECT_EQ(automatic.summary().setting, "quantize(bits=4)") << automatic.summary().reason;
    EXPECT_THAT(automatic.summary().reason,
                AllOf(HasSubstr("a step takes 35.5 ms"),
                      HasSubstr("39.8 ms with ecsq(as=quantize(bits=4))")));
  });
}

// ---- by layer ----------------------------------------------------------------------------------

// A model of eight layers, each in a bucket of its own, and the timeline of its steps: a gradient
// every 0.1 s, and one bucket's average after the other's. Ranks see somewhat different times.
class Timeline8 {
 public:
  static constexpr std::size_t kCount = 8;

  Timeline8(const RankContext& ctx, const std::string& spec)
      : rank_(ctx.rank), plan_(make(ctx.group, spec)) {}

  // Seconds that a layer takes by the name of its codec.
  std::map<std::string, double> seconds = {
      {"none", 0.16}, {"cast", 0.095}, {"quantize", 0.01}, {"ecsq", 0.01}};
  // What a step takes more where the layers have different settings.
  double mixed = 0;

  // Of all changes, as "step setting".
  std::vector<std::string> run(std::int64_t from, std::int64_t to) {
    std::vector<std::string> changes;
    for (std::int64_t step = from; step < to; ++step) {
      const auto measure = [&](std::int64_t) { return steps(); };
      if (plan_.begin_step(step, measure)) {
        changes.push_back(concat(step, " ", plan_.summary().setting));
      }
      for (std::size_t l = 0; l < kCount; ++l) {
        const auto seed = static_cast<std::uint64_t>(100 * step + 10 * rank_) + l;
        auto generator = at::detail::createCPUGenerator(seed);
        comm::Bucket bucket{l,
                            at::randn({64 * 64}, generator, at::kFloat).mul_(scale(l)),
                            {{name(l), 0, {64, 64}}}};
        plan_.observe(bucket);
      }
    }
    return changes;
  }

  // As the communication thread would have it.
  MeasuredSteps steps() const {
    MeasuredSteps made;
    double end = 0, work = 0;
    std::set<std::string> kinds;
    for (std::size_t l = 0; l < kCount; ++l) {
      const std::string setting = plan_.plan().of(name(l)).text();
      kinds.insert(setting.substr(0, setting.find('(')));
      const double own = seconds.at(setting.substr(0, setting.find('('))) * (1 - 0.01 * rank_);
      const double ready = 0.1 * static_cast<double>(l + 1);
      made.buckets.push_back({{name(l)}, 64 * 64 * 4, ready, own});
      end = std::max(end, ready) + own;
      work += own;
    }
    if (kinds.size() > 1) end += mixed;
    const double last = made.buckets.back().ready;
    made.times = {.step = end, .exposed = end - last, .exchange = 0.9 * work};
    return made;
  }

  // How many layers have a setting, by the name of its codec, in order of the buckets.
  std::string codecs() const {
    std::string text;
    for (std::size_t l = 0; l < kCount; ++l) text += plan_.plan().of(name(l)).text()[0];
    return text;
  }
  const AutomaticPlan& plan() const { return plan_; }

 private:
  static std::string name(std::size_t layer) { return concat("layer", layer); }
  // One layer has larger gradients than the others.
  static double scale(std::size_t layer) { return layer == 3 ? 10 : 1; }

  static AutomaticPlan make(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                            const std::string& spec) {
    std::vector<LayerInfo> layers;
    for (std::size_t l = 0; l < kCount; ++l) layers.push_back({name(l), {64, 64}});
    const CompressionPlan made = make_plan(layers, CompressionOptions(spec));
    return AutomaticPlan(group, *made.automatic, made.plan, 0);
  }

  const int rank_;
  AutomaticPlan plan_;
};

// No setting of all hides with less error than 8 bits; but what is ready early has time.
TEST(AutomaticPlan, GivesEachLayerTheLeastErrorThatHides) {
  run_ranks(2, [](RankContext& ctx) {
    Timeline8 job(ctx, "auto");
    const auto changes = job.run(0, 60);
    ASSERT_EQ(changes.size(), 3u) << ::testing::PrintToString(changes);
    EXPECT_EQ(changes[0], "9 cast(bf16)");
    EXPECT_EQ(changes[1], "16 quantize(bits=8)");
    EXPECT_THAT(changes[2], ::testing::StartsWith("24 "))
        << "one step after the search, whose gradients were looked at";
    EXPECT_EQ(job.codecs()[3], 'n') << "the layer that would lose most: " << job.codecs();
    EXPECT_EQ(job.codecs()[7], 'q') << "the last one, whose average nothing hides";
    EXPECT_LE(std::ranges::count(job.codecs(), 'q'), 3) << job.codecs();
    const WindowTimes times = job.steps().times;
    EXPECT_LE(times.exposed, 0.02 * times.step);
    const AutomaticSummary& summary = job.plan().summary();
    EXPECT_THAT(summary.setting, AllOf(HasSubstr(" quantize(bits=8)"), HasSubstr("none")));
    EXPECT_THAT(summary.reason, AllOf(HasSubstr("which hides it"), HasSubstr("with quantize"),
                                      HasSubstr("the squared error of the gradients is 0")));
    EXPECT_EQ(summary.searches, 1);
  });
}

// What layers of different settings cost together is not what was reckoned: twice tried, never
// kept.
TEST(AutomaticPlan, IsNotSlowerByLayerThanWithOneSetting) {
  run_ranks(2, [](RankContext& ctx) {
    Timeline8 job(ctx, "auto");
    job.mixed = 0.05;
    const auto changes = job.run(0, 80);
    ASSERT_EQ(changes.size(), 5u) << ::testing::PrintToString(changes);
    EXPECT_EQ(changes.back(), "38 quantize(bits=8)");
    EXPECT_EQ(job.codecs(), "qqqqqqqq");
    EXPECT_THAT(job.plan().summary().reason, ::testing::Not(HasSubstr("squared error")));
    EXPECT_EQ(job.plan().summary().setting, "quantize(bits=8)");
  });
}

TEST(AutomaticPlan, LeavesSettingsByLayerWithinTwentyStepsOfALinkThatDropsToATenth) {
  run_ranks(2, [](RankContext& ctx) {
    Timeline8 job(ctx, "auto");
    job.run(0, 60);
    ASSERT_NE(job.codecs(), "qqqqqqqq");
    for (auto& [codec, seconds] : job.seconds) seconds *= 10;
    EXPECT_THAT(job.run(60, 80), ElementsAre(::testing::EndsWith(" quantize(bits=8)"),
                                             ::testing::EndsWith(" quantize(bits=4)")));
    job.run(80, 100);
    EXPECT_EQ(job.codecs(), "qqqqqqqq") << "no codec hides now, and none is faster";
    // And back, once it is as before.
    for (auto& [codec, seconds] : job.seconds) seconds /= 10;
    job.run(100, 260);
    EXPECT_EQ(job.codecs()[3], 'n');
  });
}

TEST(AutomaticPlan, LooksAtNoGradientWhereAveragingHides) {
  run_ranks(2, [](RankContext& ctx) {
    Timeline8 job(ctx, "auto");
    job.seconds["none"] = 0.01;
    EXPECT_THAT(job.run(0, 60), IsEmpty());
    EXPECT_EQ(job.plan().summary().setting, "none");
  });
}

// ---- what may be asked for ---------------------------------------------------------------------

TEST(AutomaticPlan, ACeilingEndsTheSettings) {
  const auto ladder = [](const std::string& spec) { return made(spec).automatic->ladder; };
  EXPECT_THAT(ladder("auto"), ElementsAre("none", "cast(bf16)", "quantize(bits=8)",
                                          "quantize(bits=4)", "ecsq(as=quantize(bits=4))"));
  EXPECT_THAT(ladder("auto(max_error=cast(bf16))"), ElementsAre("none", "cast(bf16)"));
  EXPECT_THAT(ladder("auto(max_error=quantize(bits=8))"),
              ElementsAre("none", "cast(bf16)", "quantize(bits=8)", "ecsq(as=quantize(bits=8))"));
  EXPECT_THAT(ladder("auto(max_error=quantize(bits=2))"),
              ElementsAre("none", "cast(bf16)", "quantize(bits=8)", "quantize(bits=4)",
                          "quantize(bits=2)", "ecsq(as=quantize(bits=2))"));
}

TEST(AutomaticPlan, RefusesWhatCannotBeMeant) {
  const auto plan = [](const std::string& spec, const std::string& strategy = "auto") {
    return [spec, strategy] {
      CompressionOptions options(spec);
      options.strategy = strategy;
      make_plan(kLayers, options);
    };
  };
  EXPECT_THAT(plan("auto(max_error=topk)"),
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("topk"), HasSubstr("cast(bf16)"))));
  EXPECT_THAT(plan("auto(max_error=quantize(bits=1))"),
              ThrowsMessage<InvalidArgument>(HasSubstr("bits")));
  EXPECT_THAT(plan("auto(bits=4)"), ThrowsMessage<InvalidArgument>(HasSubstr("max_error")));
  EXPECT_THAT(plan("auto", "sparse"), ThrowsMessage<InvalidArgument>(
                                          AllOf(HasSubstr("sparse"), HasSubstr("hierarchical"))));
  EXPECT_THAT(plan("atuo"), ThrowsMessage<InvalidArgument>(HasSubstr("did you mean 'auto'?")));
  CompressionOptions overridden("quantize(bits=4)");
  overridden.overrides = {{"big", "auto"}};
  EXPECT_THAT([&] { make_plan(kLayers, overridden); },
              ThrowsMessage<InvalidArgument>(HasSubstr("the model as a whole")));
}

// With real steps, whatever their times make of it.
TEST(AutomaticTraining, KeepsReplicasEqualThroughEverySetting) {
  run_ranks(2, [](RankContext& ctx) {
    torch::manual_seed(1);
    auto net = std::make_shared<torch::nn::LinearImpl>(128, 128);
    CompressionOptions compression("auto");
    compression.warmup_steps = 3;
    DistributedDataParallel<std::shared_ptr<torch::nn::LinearImpl>> ddp(
        net, ctx.group, {.compression = compression});
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    EXPECT_EQ(ddp.plan().of("weight").text(), "none");
    double first = 0, last = 0;
    for (int step = 0; step < 80; ++step) {
      auto generator =
          at::detail::createCPUGenerator(static_cast<std::uint64_t>(2 * step + ctx.rank));
      const at::Tensor x = at::randn({32, 128}, generator, at::kFloat);
      const at::Tensor loss = (ddp.forward(x) - x.flip({1})).pow(2).mean();
      ddp.zero_grad();
      loss.backward();
      optimizer.step();
      (step == 0 ? first : last) = loss.item<double>();
    }
    EXPECT_LT(last, 0.9 * first);
    EXPECT_TRUE(ddp.replicas_equal());
    const CommunicationSummary summary = ddp.summary();
    EXPECT_EQ(summary.steps, 80);
    EXPECT_GE(summary.automatic.searches, 1);
    EXPECT_FALSE(summary.automatic.reason.empty());
    ASSERT_FALSE(summary.automatic.tried.empty());
    // Later searches may be of some settings only.
    if (summary.automatic.searches == 1) EXPECT_EQ(summary.automatic.tried[0].setting, "none");
    EXPECT_GT(summary.automatic.tried[0].step, 0);
    const std::string setting = ddp.plan().of("weight").text();
    EXPECT_THAT(setting, HasSubstr(summary.automatic.setting.substr(0, 4)));
  });
}

TEST(AutomaticTraining, OneRankWithAnotherCeilingIsNamed) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<torch::nn::LinearImpl>(64, 64);
    DistributedDataParallel<std::shared_ptr<torch::nn::LinearImpl>> ddp(
        net, ctx.group,
        {.compression = ctx.rank == 0 ? "auto" : "auto(max_error=quantize(bits=8))"});
  });
  EXPECT_THAT(errors, Each(HasSubstr("policy auto")));
}

}  // namespace
}  // namespace thinwire
