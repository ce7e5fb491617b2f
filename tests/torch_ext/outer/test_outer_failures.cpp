#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cfenv>
#include <cmath>

#include "outer_toy.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using testing::expect_same_on_all;
using ::testing::HasSubstr;
using testing::kRate;
using testing::RankContext;
using testing::run_ranks;
using testing::Toy;

TEST(OuterFailures, ADeltaThatIsNotFiniteTakesAllBackToTheLastMeeting) {
  for (const char* compression : {"none", "ternary(density=0.2)"}) {
    run_ranks(2, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(toy, inner, ctx.group,
                               {.inner_steps = 1, .compression = compression});
      toy.set_gradients(ctx.rank, 0);
      optimizer.step();
      const OuterState before = optimizer.state();
      toy.set_gradients(ctx.rank, 1);
      if (ctx.rank == 1) toy.big.mutable_grad()[3][4] = std::nan("");
      optimizer.step();
      const OuterState after = optimizer.state();
      EXPECT_EQ(integer_of(after, "skipped_steps"), 1);
      ASSERT_EQ(after.size(), before.size());
      for (const auto& [name, tensor] : before)
        EXPECT_TRUE(name.ends_with("_steps") || same_bits(tensor, after.at(name))) << name;
      EXPECT_TRUE(at::equal(toy.flat(), before.at("synchronised")));
      toy.set_gradients(ctx.rank, 2);
      optimizer.step();
      EXPECT_FALSE(at::equal(optimizer.state().at("synchronised"), before.at("synchronised")));
    });
  }
}

TEST(OuterFailures, ALearningRateSetOnOneRankAloneIsNamed) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1, .check_replicas = false});
    for (int step = 0; step < 2; ++step) {
      toy.set_gradients(ctx.rank, step);
      optimizer.step();
      if (ctx.rank == 1) optimizer.set_learning_rate(0.25);
    }
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("on rank 0 and 0.25 on rank 1"),
                                 HasSubstr("set_learning_rate()"))));
}

TEST(OuterFailures, RanksThatDisagreeAllSaySo) {
  const auto errors = [](const std::function<void(int, OuterOptimizerOptions&)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizerOptions options;
      change(ctx.rank, options);
      OuterOptimizer optimizer(toy, inner, ctx.group, options);
    });
  };
  EXPECT_THAT(errors([](int rank, auto& o) { o.max_skipped_in_a_row = 5 + rank; }),
              Each(HasSubstr("max_skipped_in_a_row 6")));
  EXPECT_THAT(errors([](int rank, auto& o) { o.check_replicas = rank == 0; }),
              Each(HasSubstr("check_replicas")));
  EXPECT_THAT(errors([](int rank, auto& o) { o.inner_steps = 5 + rank; }),
              Each(HasSubstr("inner steps 6")));
  EXPECT_THAT(errors([](int rank, auto& o) { o.momentum = rank; }),
              Each(HasSubstr("outer momentum")));
  EXPECT_THAT(errors([](int, auto& o) { o.learning_rate = -1; }),
              Each(HasSubstr("learning rate must be positive, got -1")));
  EXPECT_THAT(errors([](int rank, auto& o) { o.compression = rank ? "ternery" : "ternary"; }),
              Each(HasSubstr("ternery")));
  EXPECT_THAT(errors([](int, auto& o) { o.compression = "lgreco(family=quantize)"; }),
              Each(HasSubstr("take a codec, got 'lgreco(family=quantize)'")));
  EXPECT_THAT(errors([](int, auto& o) { o.compression = "auto"; }),
              Each(HasSubstr("take a codec, got 'auto'")));
  EXPECT_THAT(
      errors([](int rank, auto& o) { o.compression = rank ? "lgreco" : "quantize(bits=4)"; }),
      Each(AllOf(HasSubstr("rank 1"), HasSubstr("take a codec, got 'lgreco'"))));
  EXPECT_THAT(errors([](int rank, auto& o) {
                o.record_gradients = "deltas";
                o.record_steps = rank == 0 ? 1 : 0;
              }),
              Each(AllOf(HasSubstr("rank 1"), HasSubstr("0 steps from 0"))));
}

TEST(OuterFailures, AModuleThatOneRankCannotTakeIsToldToAll) {
  const auto errors = [](const std::function<void(Toy&)>& change) {
    return errors_of<InvalidArgument>(3, [&](RankContext& ctx) {
      Toy toy;
      if (ctx.rank == 1) change(toy);
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(toy, inner, ctx.group);
    });
  };
  EXPECT_THAT(errors([](Toy& toy) {
                for (at::Tensor& parameter : toy.parameters()) parameter.requires_grad_(false);
              }),
              Each(AllOf(HasSubstr("rank 1"), HasSubstr("no parameter that requires"))));
  EXPECT_THAT(errors([](Toy& toy) { toy.frozen.set_data(at::zeros({5})); }),
              Each(HasSubstr("frozen parameter frozen [5]")));
  EXPECT_THAT(errors([](Toy& toy) { toy.counts.set_data(at::zeros({2})); }),
              Each(HasSubstr("buffer counts [2]")));
  EXPECT_THAT(errors([](Toy& toy) { toy.big.set_data(toy.big.to(at::kDouble)); }),
              Each(HasSubstr("lora_A [60, 40] Double")));
  EXPECT_THAT(errors([](Toy&) {}), Each("no error"));
}

TEST(OuterFailures, StatesOfOneRankThatDoNotFitAreToldToAll) {
  const auto errors = [](const std::function<void(OuterState&)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1});
      OuterState state = optimizer.state();
      if (ctx.rank == 1) change(state);
      try {
        optimizer.load_state(state);
      } catch (...) {
        toy.set_gradients(ctx.rank, 0);
        optimizer.step();  // nothing was changed, and all go on
        throw;
      }
    });
  };
  EXPECT_THAT(errors([](auto& state) { state["outer_steps"] = integer_tensor(3); }),
              Each(HasSubstr("outer steps 3")));
  EXPECT_THAT(errors([](auto& state) { state["momentum"] = state.at("momentum") + 1; }),
              Each(HasSubstr("momentum")));
  EXPECT_THAT(errors([](auto& state) { state.erase("layout"); }), Each(HasSubstr("'layout'")));
  EXPECT_THAT(errors([](auto& state) { state["world"] = integer_tensor(3); }),
              Each(HasSubstr("merge_states()")));
  EXPECT_THAT(errors([](auto& state) { state["averager/residual/other"] = at::zeros({3}); }),
              Each(HasSubstr("'other'")));
  EXPECT_THAT(errors([](auto& state) { state["more"] = at::zeros({3}); }),
              Each(HasSubstr("'more'")));
  EXPECT_THAT(errors([](auto& state) { state["synchronised"] = at::zeros({3}); }),
              Each(HasSubstr("the state has 3 weights")));
  EXPECT_THAT(errors([](auto&) {}), Each("no error"));
}

// What a program does to a module after it was wrapped.
TEST(OuterFailures, ChangesAfterTheConstructionAreNoticed) {
  const auto errors = [](const std::function<void(Toy&)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 5});
      toy.set_gradients(ctx.rank, 0);
      if (ctx.rank == 1) change(toy);
      for (int step = 0; step < 5; ++step) optimizer.step();
    });
  };
  EXPECT_THAT(errors([](Toy& toy) { toy.frozen.requires_grad_(true); }),
              Each(AllOf(HasSubstr("'frozen' was frozen"), HasSubstr("is trained now"))));
  EXPECT_THAT(errors([](Toy& toy) { toy.small.requires_grad_(false); }),
              Each(HasSubstr("'lora_B' was trained")));
  EXPECT_THAT(errors([](Toy& toy) {
                for (at::Tensor& parameter : toy.parameters()) parameter.mutable_grad().reset();
                toy.to(at::kDouble);
              }),
              Each(AllOf(HasSubstr("'lora_A' was Float"), HasSubstr("Double"))));
}

// One NaN must not spoil a run: AdamW's moments would keep it for ever.
TEST(OuterFailures, OneNotANumberCostsOneOuterStep) {
  const auto skipped = [](bool reset) {
    std::int64_t steps = 0;
    run_ranks(2, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::AdamW inner(toy.parameters(), torch::optim::AdamWOptions(1e-3));
      OuterOptimizer optimizer(toy, inner, ctx.group,
                               {.inner_steps = 2,
                                .compression = "ternary(density=0.2)",
                                .reset_inner_state = reset,
                                .max_skipped_in_a_row = 0});
      for (int step = 0; step < 20; ++step) {
        toy.set_gradients(ctx.rank, step);
        if (ctx.rank == 1 && step == 6) toy.big.mutable_grad().fill_(std::nan(""));
        optimizer.step();
      }
      EXPECT_EQ(toy.flat().isfinite().all().item<bool>(), true);
      expect_same_on_all(ctx, toy.flat());
      if (ctx.rank == 0) steps = optimizer.summary().skipped_steps;
    });
    return steps;
  };
  EXPECT_EQ(skipped(true), 1);
  EXPECT_EQ(skipped(false), 7);  // all from then on
}

TEST(OuterFailures, DeltasThatStayNotFiniteEndTheTrainingAndNameTheRank) {
  const auto errors = errors_of<CommError>(3, [](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1, .max_skipped_in_a_row = 3});
    for (int step = 0; step < 6; ++step) {
      toy.set_gradients(ctx.rank, step);
      // Two in a row are borne, and the third that is not in a row with them.
      if (ctx.rank == 2 && step != 2) toy.small.mutable_grad().fill_(std::nan(""));
      try {
        optimizer.step();
      } catch (const CommError& error) {
        EXPECT_EQ(step, 5);
        EXPECT_EQ(error.rank(), 2);
        throw;
      }
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("3 outer steps in a row were dropped")));
}

TEST(OuterFailures, WhatTheInnerOptimizerThrowsIsToldToAll) {
  struct Throwing : torch::optim::SGD {
    using SGD::SGD;
    at::Tensor step(LossClosure closure = nullptr) override {
      if (fails) throw std::runtime_error("the inner optimizer has no more");
      return SGD::step(closure);
    }
    bool fails = false;
  };
  const auto errors = errors_of<CommError>(2, [](RankContext& ctx) {
    Toy toy;
    Throwing inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    inner.fails = ctx.rank == 1;
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1});
    toy.set_gradients(ctx.rank, 0);
    optimizer.step();
  });
  EXPECT_THAT(errors, Each(HasSubstr("the inner optimizer has no more")));
}

TEST(OuterFailures, ReplicasThatDriftedApartAreNoticed) {
  const auto errors = errors_of<InternalError>(2, [](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1});
    toy.set_gradients(ctx.rank, 0);
    // Another library may leave it like this on one rank.
    if (ctx.rank == 1) std::fesetround(FE_UPWARD);
    try {
      optimizer.step();
    } catch (...) {
      std::fesetround(FE_TONEAREST);
      throw;
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("not bit-equal")));
}

}  // namespace
}  // namespace thinwire
