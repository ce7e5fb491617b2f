// OuterOptimizer on its way from one world to the next.
#include "thinwire/common/error.h"
#include "thinwire/tests/torch_ext/elastic/next_group.h"
#include "thinwire/tests/torch_ext/outer/outer_toy.h"

namespace thinwire {
namespace {

using testing::expect_same_on_all;
using testing::group_of;
using testing::RankContext;
using testing::run_ranks;
using testing::Toy;

struct OuterTraining {
  OuterTraining(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& compression)
      : inner(toy.parameters(), torch::optim::SGDOptions(testing::kRate)),
        outer(toy, inner, group,
              {.inner_steps = 2, .learning_rate = 1, .momentum = 0, .compression = compression}) {
    outer.begin_step();
  }
  bool step(int rank, std::int64_t number) {
    toy.set_gradients(rank, number);
    return outer.step();
  }
  Toy toy;
  torch::optim::SGD inner;
  OuterOptimizer outer;
};

// A rank dies between two meetings: the others meet without it, at the weights that they have come
// to, and a new rank begins at the last meeting.
TEST(OuterMove, ThoseWhoAreLeftMeetWithTheStepsThatTheyHaveMade) {
  run_ranks(3, [](RankContext& ctx) {
    auto training = std::make_unique<OuterTraining>(ctx.group, "none");
    for (int step = 0; step < 4; ++step) training->step(ctx.rank, step);
    if (ctx.rank == 2) {
      training.reset();
      ctx.group.reset();
      training = std::make_unique<OuterTraining>(group_of(ctx, "alone", 0, 1), "none");
      training->step(2, 0);
    } else {
      EXPECT_FALSE(training->step(ctx.rank, 4));
      EXPECT_THROW(training->step(ctx.rank, 5), CommError);
      const at::Tensor mine = training->toy.flat();
      auto two = group_of(ctx, "two", ctx.rank, 2);
      std::vector<at::Tensor> sum = {mine.clone()};
      two->allreduce(sum)->wait();
      // For a while it looks as if somebody had finished that meeting.
      training->outer.leave(Standing::kBehind);
      move_to(training->outer, {.group = two, .standing = Standing::kRepeats});
      EXPECT_TRUE(at::equal(training->toy.flat(), mine)) << "weights between meetings are kept";
      EXPECT_EQ(training->outer.finished_steps(), 2);
      // The repeated call meets; its gradients are those of an inner step that is done.
      EXPECT_TRUE(training->step(ctx.rank, 99));
      EXPECT_LE((training->toy.flat() - sum[0] / 2).abs().max().item<float>(), 1e-6);
      EXPECT_EQ(training->outer.summary().inner_steps, 6);
      EXPECT_EQ(training->outer.finished_steps(), 3);
    }
    auto three = group_of(ctx, "three", ctx.rank, 3);
    move_to(training->outer,
            {.group = three, .standing = ctx.rank == 2 ? Standing::kNew : Standing::kGoesOn});
    ctx.group = three;
    expect_same_on_all(ctx, training->toy.flat());
    EXPECT_EQ(training->outer.finished_steps(), 3);
    EXPECT_FALSE(training->step(ctx.rank, 6));
    EXPECT_TRUE(training->step(ctx.rank, 7));
    expect_same_on_all(ctx, training->toy.flat());
  });
}

// A meeting to which one rank does not come is taken back, and not the one before it.
TEST(OuterMove, ResidualsOfTheLastMeetingOutliveOneThatFails) {
  run_ranks(2, [](RankContext& ctx) {
    auto training = std::make_unique<OuterTraining>(ctx.group, "ternary(density=0.05)");
    for (int step = 0; step < 4; ++step) training->step(ctx.rank, step);
    if (ctx.rank == 1) {
      training.reset();
      ctx.group.reset();
      return;
    }
    training->step(0, 4);
    const OuterState before = training->outer.state();
    const OuterState in_place = training->outer.state_in_place();
    const OuterState again = training->outer.state_in_place();
    ASSERT_EQ(in_place.size(), before.size());
    for (const auto& [name, tensor] : before) {
      EXPECT_TRUE(same_bits(in_place.at(name), tensor)) << name;
      // What is as large as the model is not copied: a checkpoint does that.
      if (name.find("residual/") == std::string::npos) continue;
      EXPECT_EQ(again.at(name).const_data_ptr(), in_place.at(name).const_data_ptr()) << name;
      EXPECT_NE(tensor.const_data_ptr(), in_place.at(name).const_data_ptr()) << name;
    }
    EXPECT_THROW(training->step(0, 5), CommError);
    move_to(training->outer,
            {.group = group_of(ctx, "alone", 0, 1), .standing = Standing::kRepeats});
    const OuterState after = training->outer.state();
    int residuals = 0;
    for (const auto& [name, tensor] : before) {
      if (name.find("residual/") == std::string::npos) continue;
      EXPECT_TRUE(at::equal(after.at(name), tensor)) << name;
      ++residuals;
    }
    EXPECT_GT(residuals, 0);
  });
}

TEST(OuterMove, WhoIsBehindTakesTheMeetingsEndAndAStepThatIsTakenBackLeavesNothing) {
  run_ranks(2, [](RankContext& ctx) {
    const char* spec = "ternary(density=0.05)";
    OuterTraining training(ctx.group, spec);
    for (int step = 0; step < 4; ++step) training.step(ctx.rank, step);
    const OuterState before = training.outer.state();
    if (ctx.rank == 1) training.toy.big.data().fill_(9);
    move_to(training.outer, {.group = group_of(ctx, "next", ctx.rank, 2),
                             .standing = ctx.rank == 0 ? Standing::kGoesOn : Standing::kBehind});
    ctx.group = group_of(ctx, "check", ctx.rank, 2);
    expect_same_on_all(ctx, training.toy.flat());
    const OuterState after = training.outer.state();
    ASSERT_EQ(after.size(), before.size());
    for (const auto& [name, tensor] : before)
      EXPECT_TRUE(at::equal(after.at(name), tensor)) << name;
    // Its call is the one whose end it lacked.
    if (ctx.rank == 1) {
      EXPECT_TRUE(training.step(1, 3));
    }
    EXPECT_EQ(training.outer.summary().inner_steps, 4);
    EXPECT_FALSE(training.step(ctx.rank, 4));
    EXPECT_TRUE(training.step(ctx.rank, 5));
    expect_same_on_all(ctx, training.toy.flat());
  });
}

}  // namespace
}  // namespace thinwire
