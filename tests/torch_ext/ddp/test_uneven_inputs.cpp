#include "thinwire/torch_ext/ddp/uneven_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::Ddp;
using ::testing::Each;
using testing::errors_of;
using testing::expect_same_parameters;
using ::testing::HasSubstr;
using testing::inputs;
using testing::loss_of;
using testing::Net;
using testing::RankContext;
using testing::run_ranks;
using testing::train_step;

// Rank r of 3 has these.
constexpr int kSteps[] = {2, 6, 3};

std::shared_ptr<Net> trained_alone(bool divide_by_initial) {
  auto net = std::make_shared<Net>(1);
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  for (int step = 0; step < 6; ++step) {
    optimizer.zero_grad();
    int active = 0;
    for (const int steps : kSteps) active += step < steps;
    for (int rank = 0; rank < 3; ++rank) {
      if (step >= kSteps[rank]) continue;
      const auto x = inputs(rank, step);
      (loss_of(net->forward(x, step % 2 == 0).first, x) / (divide_by_initial ? 3 : active))
          .backward();
    }
    // As find_unused_parameters has it, which leaves a gradient that nobody has undefined.
    optimizer.step();
  }
  return net;
}

class UnevenInputs : public ::testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(UnevenInputs, TheRanksThatHaveInputsGoOn) {
  const auto [divide_by_initial, find_unused] = GetParam();
  const auto alone = trained_alone(divide_by_initial);
  run_ranks(3, [&, divide = divide_by_initial, find_unused = find_unused](RankContext& ctx) {
    auto net = std::make_shared<Net>(static_cast<std::uint64_t>(ctx.rank) + 1);
    Ddp ddp(net, ctx.group, {.bucket_cap_mb = 0.004, .find_unused_parameters = find_unused});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int epoch = 0; epoch < 2; ++epoch) {
      if (epoch == 1) {  // once more from the start
        const at::NoGradGuard no_grad;
        const Net fresh(1);
        for (const auto& item : fresh.named_parameters())
          net->named_parameters()[item.key()].copy_(item.value());
      }
      ddp.join(
          [&] {
            for (int step = 0; step < kSteps[ctx.rank]; ++step) {
              ddp.zero_grad();
              const auto x = inputs(ctx.rank, step);
              auto y = ddp.forward(x, step % 2 == 0 || !find_unused).first;
              if (step % 2 != 0 && !find_unused) y = y - net->spare.sum() * 0.01;
              loss_of(y, x).backward();
              optimizer.step();
            }
          },
          {.divide_by_initial_world_size = divide});
      expect_same_parameters(*net, *alone);
      EXPECT_TRUE(ddp.replicas_equal());
    }
    EXPECT_EQ(ddp.summary().steps, 12) << "ranks without inputs count the others' steps";
  });
}

INSTANTIATE_TEST_SUITE_P(Options, UnevenInputs,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool()));

TEST(UnevenInputsOf, EveryKindOfPassIsJoined) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, {.compression = "topk(density=0.1)", .static_graph = true});
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    ddp.join([&] {
      for (int step = 0; step < (ctx.rank == 0 ? 1 : 4); ++step) {
        net->seen.fill_(10 * ctx.rank + step);
        const auto x = inputs(ctx.rank, step);
        ddp.zero_grad();
        {
          const auto local = ddp.no_sync();
          loss_of(ddp.forward(x, true).first, x).backward();
        }
        const auto loss = loss_of(ddp.forward(x, true).first, x);
        loss.backward({}, /*retain_graph=*/true);
        loss.backward();
        optimizer.step();
      }
    });
    EXPECT_TRUE(ddp.replicas_equal());
    EXPECT_EQ(ddp.summary().steps, 8);
    EXPECT_EQ(net->seen.item<float>(), 13.0f) << "of the rank that ended last";
  });
}

// The averages within join() are larger by what the ranks without inputs do not bring.
TEST(UnevenInputsOf, StepsAfterItAreMeansOfAllRanksAgain) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    const auto gradient = [&] {
      ddp.zero_grad();
      const auto x = inputs(0, 9);
      loss_of(ddp.forward(x, true).first, x).backward();
      return net->first.grad().clone();
    };
    const at::Tensor before = gradient();
    const auto some_steps = [&] {
      for (int step = 0; step < (ctx.rank == 0 ? 1 : 3); ++step) gradient();
    };
    ddp.join(some_steps, {.divide_by_initial_world_size = false});
    EXPECT_TRUE(at::equal(gradient(), before));
  });
}

TEST(UnevenInputsOf, TheFirstRankToEndEndsAllWhereTheOptionSaysSo) {
  const auto errors = errors_of<InvalidArgument>(3, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    ddp.join(
        [&] {
          for (int step = 0; step < kSteps[ctx.rank]; ++step)
            train_step(ddp, optimizer, ctx.rank, step);
        },
        {.throw_on_early_termination = true});
  });
  EXPECT_THAT(errors, Each(HasSubstr("rank(s) 0 of 3 have no inputs left")));
}

TEST(UnevenInputsOf, DifferentPassesAreNamed) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    ddp.join([&] {
      const auto x = inputs(ctx.rank, 0);
      const auto y = ddp.forward(x, true).first;
      if (ctx.rank == 0) {
        ddp.forward(x, true);
      } else {
        loss_of(y, x).backward();
      }
    });
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("rank 0 does a forward pass"),
                                 HasSubstr("rank 1 a backward pass"))));
}

TEST(UnevenInputsOf, AnExceptionOfTheLoopLeavesTheObjectUsable) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    EXPECT_THROW(ddp.join([] { throw std::runtime_error("no data"); }), std::runtime_error);
    train_step(ddp, optimizer, ctx.rank, 0);
    EXPECT_EQ(ddp.summary().steps, 1);
    ddp.join([&] { EXPECT_THROW(ddp.join([] {}), InvalidArgument); });
  });
}

}  // namespace
}  // namespace thinwire
