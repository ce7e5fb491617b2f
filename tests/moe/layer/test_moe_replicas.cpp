// Experts on fewer ranks than train: two groups of two ranks, whose experts are replicas of each
// other, against one group of four.

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::errors_of;
using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;

MoEOptions replica_options(ExpertGradient kind = ExpertGradient::kMean) {
  MoEOptions options;
  options.router = {
      .dim = kDim, .experts = 4, .top_k = 2, .gate = Gate::kSigmoidBias, .bias_step = 0.1};
  options.hidden = 5;
  options.expert_gradient = kind;
  options.seed = 4;
  return options;
}

at::Tensor tokens_of(int rank, int step) {
  auto generator =
      at::detail::createCPUGenerator(static_cast<std::uint64_t>(500 + 10 * step + rank));
  return at::randn({9, kDim}, generator, at::kDouble);
}

// Of four ranks: those with the same number / 2 spread the experts, those with the same number % 2
// hold the same.
struct Groups {
  c10::intrusive_ptr<c10d::ProcessGroup> experts, replicas;

  explicit Groups(const RankContext& context) {
    const int rank = context.rank;
    experts = make(context, concat("experts", rank / 2), rank % 2);
    replicas = make(context, concat("replicas", rank % 2), rank / 2);
  }
  static c10::intrusive_ptr<c10d::ProcessGroup> make(const RankContext& context,
                                                     const std::string& name, int rank) {
    comm::ProcessGroupOptions options;
    options.timeout = std::chrono::seconds(60);
    options.hostname = "127.0.0.1";
    return comm::make_process_group(
        "gloo", c10::make_intrusive<c10d::PrefixStore>(name, context.store), rank, 2, options);
  }
};

// Trains for some steps and returns the experts' weights by name, all ranks' together, and the
// router's bias.
std::map<std::string, at::Tensor> train(ExpertGradient kind, bool spread_over_all) {
  std::mutex mutex;
  std::map<std::string, at::Tensor> weights;
  run_ranks(4, [&](RankContext& context) {
    const auto groups = spread_over_all ? nullptr : std::make_unique<Groups>(context);
    MoELayer layer(replica_options(kind), spread_over_all ? context.group : groups->experts,
                   spread_over_all ? nullptr : groups->replicas);
    layer.to(at::kDouble);
    for (int step = 0; step < 3; ++step) {
      layer.zero_grad();
      layer.forward(tokens_of(context.rank, step)).output.square().mean().backward();
      layer.average_expert_gradients();
      layer.update_expert_bias();
      const at::NoGradGuard no_grad;
      for (const at::Tensor& parameter : layer.expert_parameters()) {
        parameter.add_(parameter.grad(), -0.5);
      }
    }
    const std::lock_guard lock(mutex);
    for (const auto& [name, tensor] : layer.local_state()) {
      if (!name.starts_with("experts.") && name != "router.bias") continue;
      const auto [known, is_new] = weights.emplace(name, tensor);
      if (is_new) continue;
      // Replicas are bit-identical.
      EXPECT_TRUE(at::equal(known->second, tensor)) << name;
    }
  });
  return weights;
}

TEST(Replicas, TrainAsOneGroupOfAllRanksDoes) {
  for (const auto kind : {ExpertGradient::kMean, ExpertGradient::kSum}) {
    const auto expected = train(kind, true);
    const auto actual = train(kind, false);
    ASSERT_EQ(actual.size(), 4u * 4u + 1u);
    ASSERT_EQ(expected.size(), actual.size());
    for (const auto& [name, tensor] : expected) {
      EXPECT_TRUE(at::allclose(actual.at(name), tensor, 1e-10, 1e-12)) << name;
    }
  }
}

class OneWeight : public Expert {
 public:
  explicit OneWeight(double value) : Expert("OneWeight") {
    weight_ = register_parameter("weight", at::full({kDim}, value));
  }
  at::Tensor forward(const at::Tensor& rows) override { return rows * weight_; }

 private:
  at::Tensor weight_;
};

MoEOptions custom_options(double value) {
  MoEOptions options = replica_options();
  options.router = {.dim = kDim, .experts = 2, .top_k = 1};
  options.factory = [value](std::int64_t) { return std::make_shared<OneWeight>(value); };
  return options;
}

TEST(Replicas, BeginEqualAndAnExpertWithoutRowsKeepsNoGradient) {
  run_ranks(4, [](RankContext& context) {
    const Groups groups(context);
    MoELayer layer(custom_options(1 + context.rank), groups.experts, groups.replicas);
    const at::Tensor weight = layer.expert_parameters()[0];
    EXPECT_EQ(weight[0].item<double>(), 1 + context.rank % 2);
    layer.average_expert_gradients();  // nobody has one
    EXPECT_FALSE(weight.grad().defined());
    // Rows on the replicas of one group only.
    if (context.rank / 2 == 0) {
      weight.mutable_grad() = at::full_like(weight, 6);
    }
    layer.average_expert_gradients();
    EXPECT_TRUE(at::equal(weight.grad(), at::full_like(weight, 3)));
  });
}

TEST(Replicas, ThatWereMadeDifferentlyAreRefused) {
  const auto errors = errors_of<InvalidArgument>(4, [](RankContext& context) {
    const Groups groups(context);
    MoEOptions options = replica_options();
    options.seed = static_cast<std::uint64_t>(context.rank / 2);
    MoELayer layer(options, groups.experts, groups.replicas);
  });
  ASSERT_EQ(errors.size(), 4u);
  for (const std::string& error : errors) {
    EXPECT_NE(error.find("the replicas of experts"), std::string::npos) << error;
  }
}

TEST(RankLocal, AreTheExpertsThatARankHoldsAlone) {
  run_ranks(2, [](RankContext& context) {
    MoELayer spread(replica_options(), context.group);
    for (const at::Tensor& parameter : spread.expert_parameters()) {
      EXPECT_TRUE(comm::is_rank_local(parameter));
    }
    for (const at::Tensor& parameter : spread.replicated_parameters()) {
      EXPECT_FALSE(comm::is_rank_local(parameter));
    }
    // All of them on every rank: ordinary replicas.
    MoELayer whole(replica_options(), {});
    for (const at::Tensor& parameter : whole.parameters()) {
      EXPECT_FALSE(comm::is_rank_local(parameter));
    }
  });
}

}  // namespace
}  // namespace thinwire::moe
