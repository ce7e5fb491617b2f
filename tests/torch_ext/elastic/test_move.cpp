// DistributedDataParallel on its way from one world to the next.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/optim/sgd.h>

#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/tests/torch_ext/elastic/next_group.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

using testing::group_of;
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
    first = add("first", {48, 32});
    bias = add("bias", {48});
    second = add("second", {24, 48});
    seen = register_buffer("seen", at::zeros({1}));
  }
  at::Tensor forward(const at::Tensor& x) {
    if (is_training()) seen += 1;
    return at::linear(at::relu(at::linear(x, first, bias)), second);
  }
  at::Tensor first, bias, second, seen;
};

// With `fixed_buckets`, which LibTorch's Reducer else orders anew after a first step.
struct Training {
  Training(int its_rank, const c10::intrusive_ptr<c10d::ProcessGroup>& group,
           const std::string& spec, bool fixed_buckets = true)
      : rank(its_rank),
        net(std::make_shared<Net>()),
        ddp(net, group,
            {.compression = spec, .bucket_cap_mb = 0.004, .find_unused_parameters = fixed_buckets}),
        optimizer(net->parameters(), 0.05) {}

  void backward(int step) {
    auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(9 * step + rank));
    const auto x = at::randn({16, 32}, generator, at::kFloat);
    ddp.zero_grad();
    (ddp.forward(x) - x.narrow(1, 0, 4).sum(1, true)).pow(2).mean().backward();
  }
  void run(int begin, int end) {
    for (int step = begin; step < end; ++step) {
      ddp.begin_step();
      backward(step);
      optimizer.step();
      ddp.end_step();
    }
  }

  int rank;
  std::shared_ptr<Net> net;
  DistributedDataParallel<std::shared_ptr<Net>> ddp;
  torch::optim::SGD optimizer;
};

bool is_residual(const std::string& name) {
  return name.find("residual/") != std::string::npos || name.find("velocity/") != std::string::npos;
}

void expect_same_state(const GradientState& found, const GradientState& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_TRUE(found.contains(name)) << name;
    EXPECT_TRUE(at::equal(found.at(name), tensor)) << name;
  }
}

class MoveOf : public ::testing::TestWithParam<const char*> {};

// What a step that is made again has changed must be gone, for any codec's memory.
TEST_P(MoveOf, AStepThatIsTakenBackLeavesNothing) {
  run_ranks(2, [](RankContext& ctx) {
    Training undisturbed(ctx.rank, ctx.group, GetParam());
    Training moved(ctx.rank, group_of(ctx, "before", ctx.rank, ctx.size), GetParam());
    undisturbed.run(0, 4);
    moved.run(0, 4);
    moved.ddp.begin_step();
    moved.backward(77);
    const bool changes = moved.ddp.state().size() > 3;
    EXPECT_TRUE(changes) << "this codec carries nothing";
    move_to(moved.ddp,
            {.group = group_of(ctx, "after", ctx.rank, ctx.size), .standing = Standing::kRepeats});
    EXPECT_EQ(moved.net->seen.item<float>(), 4);
    EXPECT_EQ(moved.ddp.finished_steps(), 4);
    const bool in_basis = std::string(GetParam()).starts_with("spectral");
    if (!in_basis) expect_same_state(moved.ddp.state(), undisturbed.ddp.state());
    undisturbed.run(4, 8);
    moved.run(4, 8);
    EXPECT_TRUE(moved.ddp.replicas_equal());
    if (in_basis) return;  // residuals have left their bases: the same, in other bits
    EXPECT_EQ(moved.ddp.parameters_crc32c(), undisturbed.ddp.parameters_crc32c());
  });
}

INSTANTIATE_TEST_SUITE_P(Codecs, MoveOf,
                         ::testing::Values("quantize(bits=4)", "topk(density=0.05)",
                                           "powersgd(rank=2)", "ecsq(bits=2)",
                                           "topk(density=0.05, momentum=0.9)", "spectral(bits=2)",
                                           "onebit", "powersgd(rank=2, factors=ecsq(bits=3))"),
                         [](const auto& tested) {
                           std::string name(tested.param);
                           std::erase_if(name, [](char c) {
                             return !std::isalnum(static_cast<unsigned char>(c));
                           });
                           return name;
                         });

// Three ranks, of which one dies within a step; then another comes.
TEST(Move, ThoseWhoAreLeftKeepWhatTheyAreOwedAndANewOneTakesTheRest) {
  run_ranks(3, [](RankContext& ctx) {
    const std::string spec = "topk(density=0.05)";
    auto training = std::make_unique<Training>(ctx.rank, ctx.group, spec, false);
    training->run(0, 4);
    if (ctx.rank == 2) {
      training.reset();
      ctx.group.reset();
      training = std::make_unique<Training>(2, group_of(ctx, "alone", 0, 1), spec, false);
      training->net->first.data().fill_(3);
    } else {
      const GradientState before = training->ddp.state();
      training->ddp.begin_step();
      EXPECT_THROW(training->backward(4), CommError);
      move_to(training->ddp,
              {.group = group_of(ctx, "two", ctx.rank, 2), .standing = Standing::kRepeats});
      const GradientState after = training->ddp.state();
      for (const auto& [name, tensor] : before) {
        if (is_residual(name)) {
          EXPECT_TRUE(at::equal(after.at(name), tensor)) << name;
        }
      }
      EXPECT_EQ(after.at("world").item<std::int64_t>(), 2);
      training->run(4, 7);
      EXPECT_TRUE(training->ddp.replicas_equal());
    }
    const GradientState before = training->ddp.state();
    move_to(training->ddp, {.group = group_of(ctx, "three", ctx.rank, 3),
                            .standing = ctx.rank == 2 ? Standing::kNew : Standing::kGoesOn});
    EXPECT_TRUE(training->ddp.replicas_equal());
    EXPECT_EQ(training->ddp.finished_steps(), 7);
    for (const auto& [name, tensor] : training->ddp.state()) {
      if (!is_residual(name)) continue;
      EXPECT_NE(ctx.rank, 2) << name;
      EXPECT_TRUE(at::equal(before.at(name), tensor)) << name;
    }
    training->run(7, 10);
    EXPECT_TRUE(training->ddp.replicas_equal());
  });
}

// A step's end that one rank has seen and the other has not.
TEST(Move, WhoIsBehindTakesRank0sWeightsAndKeepsItsResiduals) {
  run_ranks(2, [](RankContext& ctx) {
    Training training(ctx.rank, ctx.group, "topk(density=0.05)");
    training.run(0, 3);
    training.ddp.begin_step();
    training.backward(3);
    if (ctx.rank == 0) {
      training.optimizer.step();
      training.ddp.end_step();
    }
    EXPECT_EQ(training.ddp.finished_steps(), ctx.rank == 0 ? 4 : 3);
    const GradientState before = training.ddp.state();
    move_to(training.ddp, {.group = group_of(ctx, "next", ctx.rank, 2),
                           .standing = ctx.rank == 0 ? Standing::kGoesOn : Standing::kBehind});
    EXPECT_EQ(training.ddp.finished_steps(), 4);
    EXPECT_TRUE(training.ddp.replicas_equal());
    expect_same_state(training.ddp.state(), before);
  });
}

// Should all who have seen a step's end be gone, before this rank has taken it over from them.
TEST(Move, WhoWasBehindMakesTheStepAgainAfterAll) {
  run_ranks(2, [](RankContext& ctx) {
    const char* spec = "topk(density=0.05)";
    Training undisturbed(ctx.rank, ctx.group, spec);
    Training behind(ctx.rank, group_of(ctx, "before", ctx.rank, 2), spec);
    undisturbed.run(0, 3);
    behind.run(0, 3);
    behind.ddp.begin_step();
    behind.backward(3);
    behind.ddp.leave(Standing::kBehind);
    move_to(behind.ddp,
            {.group = group_of(ctx, "after", ctx.rank, 2), .standing = Standing::kRepeats});
    EXPECT_EQ(behind.net->seen.item<float>(), 3);
    expect_same_state(behind.ddp.state(), undisturbed.ddp.state());
  });
}

// Sizes come from another rank, and are looked at before there is memory for them.
TEST(Move, AStateThatCannotBeIsRefusedBeforeMemoryIsTaken) {
  const auto given = [](std::int64_t length, std::string_view contents) {
    std::string error;
    run_ranks(2, [&](RankContext& ctx) {
      const auto watched = comm::watched(ctx.group);
      if (ctx.rank == 0) {
        comm::broadcast(watched, {integer_tensor(length)}, 0, "a test", 0);
        if (!contents.empty()) comm::broadcast(watched, {text_tensor(contents)}, 0, "a test", 0);
        return;
      }
      error = testing::error_of<FrameError>(
          [&] { detail::tensors_of_rank_0(ctx.group, {}, "a test"); });
    });
    return error;
  };
  const auto of = [&](std::string_view contents) {
    return given(static_cast<std::int64_t>(contents.size()), contents);
  };
  EXPECT_THAT(given(std::int64_t{1} << 40, ""), HasSubstr("1099511627776 bytes of names"));
  EXPECT_THAT(given(-1, ""), HasSubstr("-1 bytes of names"));
  EXPECT_THAT(of(R"([["a", 6, [4, 2]], ["b", 6, [1048576, 1048576, 64]]])"),
              HasSubstr("with 'b' of 281474976710656 bytes it has more than this host's memory"));
  EXPECT_THAT(of(R"([["a", 6, [4, -2]]])"), HasSubstr("'a' has the shape [4, -2]"));
  EXPECT_THAT(of(R"([["a", 6, [4294967296, 4294967296]]])"), HasSubstr("'a' has the shape"));
  EXPECT_THAT(of(R"([["a", 200, [4]]])"), HasSubstr("'a' is of type 200"));
  EXPECT_THAT(of(R"([["a", 6)"), HasSubstr("parse error"));
}

// One that cannot arrive has what it carries for the next attempt.
TEST(Move, AMoveThatFailsMayBeMadeAgain) {
  run_ranks(2, [](RankContext& ctx) {
    Training training(ctx.rank, ctx.group, "topk(density=0.05)");
    training.run(0, 3);
    const GradientState before = training.ddp.state();
    if (ctx.rank == 0) {
      EXPECT_THROW(move_to(training.ddp, {.group = nullptr}), InvalidArgument);
    }
    move_to(training.ddp, {.group = group_of(ctx, "whole", ctx.rank, 2)});
    expect_same_state(training.ddp.state(), before);
  });
}

}  // namespace
}  // namespace thinwire
