// lgreco(...) in DistributedDataParallel, as a program sees it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/optim/sgd.h>

#include <filesystem>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;

struct Net : torch::nn::Module {
  Net() {
    auto generator = at::detail::createCPUGenerator(1);
    const auto add = [&](const char* name, at::IntArrayRef shape) {
      return register_parameter(name,
                                (at::randn(shape, generator, at::kDouble) * 0.1).to(at::kFloat));
    };
    first = add("first", {64, 32});
    bias = add("bias", {64});
    second = add("second", {48, 64});
    spare = add("spare", {40, 40});
  }
  at::Tensor forward(const at::Tensor& x, bool use_spare) {
    const auto y = at::linear(at::relu(at::linear(x, first, bias)), second);
    return use_spare ? y + spare.sum() * 0.01 : y;
  }
  at::Tensor first, bias, second, spare;
};

using Ddp = DistributedDataParallel<std::shared_ptr<Net>>;

at::Tensor loss_of(Ddp& ddp, int rank, int step, bool use_spare) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 * step + rank));
  const auto x = at::randn({16, 32}, generator, at::kFloat);
  return (ddp.forward(x, use_spare) - x.narrow(1, 0, 4).sum(1, true)).pow(2).mean();
}

class AdaptiveTraining : public ::testing::TestWithParam<int> {};

// Several buckets, passes without exchange, a layer that only rank 0 uses now and then, an
// override.
TEST_P(AdaptiveTraining, KeepsReplicasEqualWithEverythingElseThatDdpDoes) {
  run_ranks(GetParam(), [](RankContext& ctx) {
    const auto begin = Clock::now();
    auto net = std::make_shared<Net>();
    CompressionOptions compression(
        "lgreco(family=mixed, reference=powersgd(rank=2), period=6, warmup=2, first=0, window=2)");
    compression.warmup_steps = 4;
    compression.overrides = {{"second", "quantize(bits=8)"}};
    Ddp ddp(net, ctx.group,
            {.compression = compression, .bucket_cap_mb = 0.004, .find_unused_parameters = true});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    EXPECT_EQ(ddp.allocation(), nullptr);
    EXPECT_THAT(ddp.plan().of("first").text(), HasSubstr("powersgd(rank=2"));
    for (int step = 0; step < 20; ++step) {
      ddp.zero_grad();
      {
        const auto guard = ddp.no_sync();
        loss_of(ddp, ctx.rank, 1000 + step, false).backward();
      }
      loss_of(ddp, ctx.rank, step, ctx.rank == 0 && step % 3 == 0).backward();
      optimizer.step();
    }
    EXPECT_TRUE(ddp.replicas_equal());
    const CommunicationSummary summary = ddp.summary();
    EXPECT_EQ(summary.steps, 20);
    EXPECT_EQ(summary.warmup_steps, 4);
    // After steps 4, 10 and 16, each with two steps of lag.
    EXPECT_EQ(summary.adaptation.plans, 3);
    EXPECT_LT(summary.adaptation.training_seconds, seconds_since(begin));
    EXPECT_NEAR(summary.adaptation.share() * summary.adaptation.training_seconds,
                summary.adaptation.seconds(), 1e-9);
    ASSERT_NE(ddp.allocation(), nullptr);
    ASSERT_EQ(ddp.allocation()->layers.size(), 2u) << "neither the bias nor the override";
    EXPECT_EQ(ddp.allocation()->layers[0].name, "first");
    EXPECT_EQ(ddp.allocation()->layers[1].name, "spare");
    EXPECT_LE(ddp.allocation()->chosen.bytes, ddp.allocation()->reference.bytes);
    EXPECT_LE(ddp.allocation()->chosen.error, ddp.allocation()->reference.error);
    EXPECT_THAT(ddp.plan().of("second").text(), HasSubstr("bits=8"));
    EXPECT_EQ(ddp.plan().of("bias").text(), "none");
    if (ctx.size > 1) {
      EXPECT_LT(summary.compressed_wire_bytes_per_step(), summary.wire_bytes_per_step());
      EXPECT_GT(summary.compressed_ratio(), 2);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, AdaptiveTraining, ::testing::Values(1, 2, 3, 4));

TEST(AdaptiveTrainingErrors, WrongSpecsAreToldToEveryRank) {
  const std::pair<const char*, const char*> cases[] = {
      {"lgreco(famly=topk)", "did you mean family?"},
      {"lgreco(reference=9)", "from 1 to 8"},
      {"lgreco(family=topk, window=20, period=10)", "window must not exceed period"},
      {"lgreco(family=topk, error_feedback=maybe)", "maybe"},
      {"lgreco(objective=time)", "THINWIRE_LINK_MODEL"}};
  for (const auto& [spec, expected] : cases) {
    const auto errors = errors_of<InvalidArgument>(2, [&, spec = spec](RankContext& ctx) {
      Ddp ddp(std::make_shared<Net>(), ctx.group, {.compression = spec});
    });
    EXPECT_THAT(errors, Each(HasSubstr(expected))) << spec;
  }
  const auto differ = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    Ddp ddp(std::make_shared<Net>(), ctx.group,
            {.compression = ctx.rank == 0 ? "lgreco(period=50)" : "lgreco(period=60)"});
  });
  EXPECT_THAT(differ, Each(AllOf(HasSubstr("period=50"), HasSubstr("period=60"))));
}

// A network of two hosts on which a byte takes `beta` seconds.
void write_link(const std::filesystem::path& path, double beta) {
  comm::LinkModel model;
  model.world = 2;
  model.hosts = {"a", "b"};
  for (auto& cost : model.backends["gloo"].collectives) cost = {0, beta};
  comm::write_link_model(model, path.string());
}

// Whoever asks for fewer bytes gets them, also where they take longer.
TEST(AdaptiveTrainingTime, ALinkModelDoesNotOverruleThePlan) {
  const auto path = std::filesystem::temp_directory_path() / "thinwire_test_plan_on_fast_link.json";
  write_link(path, 1e-15);
  const auto ratio_of = [&](const char* spec) {
    double ratio = 0;
    run_ranks(2, [&](RankContext& ctx) {
      CompressionOptions compression(spec);
      compression.link_model = path.string();
      Ddp ddp(std::make_shared<Net>(), ctx.group, {.compression = compression});
      for (int step = 0; step < 30; ++step) {
        ddp.zero_grad();
        loss_of(ddp, ctx.rank, step, true).backward();
      }
      if (ctx.rank == 0) ratio = ddp.summary().compressed_ratio();
    });
    return ratio;
  };
  // The ranks' agreements are beside the gradients.
  EXPECT_NEAR(ratio_of("quantize(bits=4)"), 1, 1e-3);
  EXPECT_GT(ratio_of("lgreco(period=4, warmup=0, first=0, window=1)"), 4);
  std::filesystem::remove(path);
}

// The uniform reference compresses; on a network as fast as memory it does not pay.
TEST(AdaptiveTrainingTime, ObjectiveTimeTakesTheLinkModel) {
  const auto path = std::filesystem::temp_directory_path() / "thinwire_test_adaptive_link.json";
  const auto specs_on = [&](double beta) {
    write_link(path, beta);
    std::vector<std::string> specs;
    run_ranks(2, [&](RankContext& ctx) {
      auto net = std::make_shared<Net>();
      CompressionOptions compression(
          "lgreco(objective=time, period=4, warmup=0, first=0, window=1)");
      compression.link_model = path.string();
      Ddp ddp(net, ctx.group, {.compression = compression});
      for (int step = 0; step < 4; ++step) {
        ddp.zero_grad();
        loss_of(ddp, ctx.rank, step, true).backward();
      }
      ASSERT_NE(ddp.allocation(), nullptr);
      if (ctx.rank != 0) return;
      for (const auto& layer : ddp.allocation()->layers) specs.push_back(layer.chosen.spec);
    });
    return specs;
  };
  EXPECT_THAT(specs_on(1e-15), Each("identity"));
  EXPECT_THAT(specs_on(1e-3), ::testing::Contains(HasSubstr("quantize")));
  const auto differ = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
    CompressionOptions compression("quantize(bits=4)");
    if (ctx.rank == 1) compression.link_model = path.string();
    Ddp ddp(std::make_shared<Net>(), ctx.group, {.compression = compression});
  });
  EXPECT_THAT(differ, Each(AllOf(HasSubstr("the link model"), HasSubstr("none"))));
  std::filesystem::remove(path);
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
    CompressionOptions compression("lgreco(objective=time)");
    compression.link_model = path.string();
    Ddp ddp(std::make_shared<Net>(), ctx.group, {.compression = compression});
  });
  EXPECT_THAT(errors, Each(HasSubstr("thinwire_test_adaptive_link.json")));
}

}  // namespace
}  // namespace thinwire
