// Experts on fewer ranks than train: two groups of two ranks, whose experts are replicas of each
// other, against one group of four.

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/moe/observed_group.h"
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
    experts = make(context, concat("experts", rank / 2), rank % 2, 2);
    replicas = make(context, concat("replicas", rank % 2), rank / 2, 2);
  }
  static c10::intrusive_ptr<c10d::ProcessGroup> make(const RankContext& context,
                                                     const std::string& name, int rank, int size) {
    comm::ProcessGroupOptions options;
    options.timeout = std::chrono::seconds(60);
    options.hostname = "127.0.0.1";
    return comm::make_process_group(
        "gloo", c10::make_intrusive<c10d::PrefixStore>(name, context.store), rank, size, options);
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

// Rank 0 alone is wrong: rank 1 is in its group, rank 2 its replica, rank 3 neither.
TEST(Replicas, LearnOfAMistakeInAnotherGroup) {
  const auto errors = errors_of<InvalidArgument>(4, [](RankContext& context) {
    const Groups groups(context);
    MoEOptions options = custom_options(1);
    if (context.rank == 0) {
      options.factory = [](std::int64_t) -> std::shared_ptr<Expert> {
        throw std::runtime_error("there are no experts here");
      };
    }
    MoELayer layer(options, groups.experts, groups.replicas);
  });
  ASSERT_EQ(errors.size(), 4u);
  for (const std::string& error : errors) {
    EXPECT_EQ(error, "rank 0: in its group of experts, rank 0: there are no experts here");
  }
}

// Two groups of three ranks; ranks 0 and 3 are replicas, the others are told the wrong ones.
TEST(Replicas, ThatOnlySomeRanksMixUpAreRefusedOnAll) {
  const auto errors = errors_of<InvalidArgument>(6, [](RankContext& context) {
    const int rank = context.rank;
    constexpr int kReplicas[] = {0, 1, 2, 0, 2, 1};
    const auto experts = Groups::make(context, concat("experts", rank / 3), rank % 3, 3);
    const auto replicas = Groups::make(context, concat("replicas", kReplicas[rank]), rank / 3, 2);
    MoELayer layer(replica_options(), experts, replicas);
  });
  ASSERT_EQ(errors.size(), 6u);
  for (const std::string& error : errors) {
    EXPECT_NE(error.find("the ranks disagree on the replicas of experts"), std::string::npos)
        << error;
  }
}

TEST(Replicas, WhatTheySendIsCounted) {
  run_ranks(4, [](RankContext& context) {
    const Groups groups(context);
    std::int64_t bytes = 0;  // but for the weights that begin equal
    const auto counted = [&](const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
      return testing::observed_group(group, [&](const std::string& name, std::int64_t sent) {
        if (name != "broadcast") bytes += sent;
      });
    };
    MoELayer layer(replica_options(), counted(groups.experts), counted(groups.replicas));
    for (int step = 0; step < 2; ++step) {
      const at::Tensor tokens = tokens_of(context.rank, step).to(at::kFloat).requires_grad_();
      layer.forward(tokens).output.sum().backward();
      const std::int64_t before = bytes;
      const std::int64_t averaged = layer.wire_bytes().replicas;
      layer.average_expert_gradients();
      layer.update_expert_bias();
      EXPECT_GT(bytes, before);
      EXPECT_EQ(layer.wire_bytes().replicas - averaged, bytes - before);
      EXPECT_EQ(layer.wire_bytes().total(), bytes);
    }
    const MoESummary summary = layer.summary();
    EXPECT_EQ(summary.wire.total(), bytes);
    for (const auto& [name, value] : metric_fields(summary)) {
      if (name != "moe_bytes_replicas") continue;
      EXPECT_EQ(std::get<std::int64_t>(value), summary.wire.replicas);
    }
    EXPECT_NE(describe(summary, 2).find(", replicas 0.00"), std::string::npos);
  });
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
