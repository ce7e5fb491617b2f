// What a CompressedBackend carries from call to call, ranks as threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/backend/compressed_backend.h"

namespace thinwire {
namespace {

using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;
using Tensors = std::vector<at::Tensor>;
using Saved = std::map<std::string, at::Tensor>;

constexpr std::int64_t kNumel = 2000;

c10::intrusive_ptr<CompressedBackend> backend_of(const c10::intrusive_ptr<c10d::ProcessGroup>& g) {
  return c10::dynamic_intrusive_pointer_cast<CompressedBackend>(
      g->getBackend(c10::DeviceType::CPU));
}

at::Tensor gradient_of(int rank, int step, std::int64_t numel) {
  const auto generator =
      at::detail::createCPUGenerator(static_cast<std::uint64_t>(1000 + 100 * rank + step));
  return at::randn({numel}, generator, at::kFloat);
}

at::Tensor reduce_scatter(c10d::ProcessGroup& group, at::Tensor in) {
  at::Tensor out = at::empty({in.numel() / group.getSize()}, at::kFloat);
  group._reduce_scatter_base(out, in)->wait();
  return out;
}

// Sums over the steps: with feedback the error is that of the last step, without it adds up.
double error_after(int steps, const char* key) {
  double error = 0;
  run_ranks(2, [&](RankContext& ctx) {
    const auto group =
        compressed_group(ctx.group, {.compression = "quantize(bits=2, rounding=nearest)"});
    at::Tensor sum = at::zeros({kNumel}), exact = at::zeros({kNumel});
    for (int step = 0; step < steps; ++step) {
      std::optional<FeedbackKey> named;
      if (key) named.emplace(key);
      // The same gradient each time, so that what is always left out shows.
      sum += reduce_scatter(*group, gradient_of(ctx.rank, 0, 2 * kNumel));
      named.reset();
      exact += reduce_scatter(*ctx.group, gradient_of(ctx.rank, 0, 2 * kNumel));
    }
    if (ctx.rank == 0) error = (sum - exact).norm().item<double>() / steps;
  });
  return error;
}

TEST(BackendFeedback, AKeyBringsWhatIsLeftOut) {
  EXPECT_LT(error_after(20, "weight"), error_after(20, nullptr) / 5);
  EXPECT_LT(error_after(20, "weight"), error_after(2, "weight") / 5);
}

// Updates and residuals together hold every gradient.
TEST(BackendFeedback, NothingOfAGradientIsLost) {
  run_ranks(3, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "topk(density=0.1)"});
    at::Tensor sum = at::zeros({kNumel}), exact = at::zeros({kNumel});
    for (int step = 0; step < 6; ++step) {
      const at::Tensor gradient = gradient_of(ctx.rank, step, 3 * kNumel);
      const FeedbackKey key("layer");
      sum += reduce_scatter(*group, gradient);
      exact += reduce_scatter(*ctx.group, gradient);
    }
    EXPECT_EQ(backend_of(group)->statistics().operations.at("reduce_scatter").coded, 6);
    // What the ranks still owe, added up at its owner; a rank owes itself nothing.
    const at::Tensor owed = backend_of(group)->state().at("parts/residual/layer");
    at::Tensor by_owner = at::zeros({3, kNumel});
    for (int r = 0, other = 0; r < 3; ++r)
      if (r != ctx.rank) by_owner[r] = owed.narrow(0, kNumel * other++, kNumel);
    const at::Tensor owed_to_me = reduce_scatter(*ctx.group, by_owner.flatten());
    EXPECT_LT((sum + owed_to_me - exact).abs().max().item<float>(), 1e-4);
    EXPECT_GT((sum - exact).abs().max().item<float>(), 0.1);
  });
}

TEST(BackendFeedback, WithoutAKeyCodecsThatNeedItAreNotUsed) {
  run_ranks(2, [](RankContext& ctx) {
    for (const char* spec : {"topk(density=0.1)", "onebit", "powersgd(rank=2)", "ternary"}) {
      const auto group = compressed_group(ctx.group, {.compression = spec});
      Tensors have = {gradient_of(ctx.rank, 0, 4096).view({64, 64})}, want = {have[0].clone()};
      group->allreduce(have)->wait();
      ctx.group->allreduce(want)->wait();
      EXPECT_TRUE(at::equal(have[0], want[0])) << spec;
      auto use = backend_of(group)->statistics().operations.at("all_reduce");
      EXPECT_EQ(use.without_key, 1) << spec;
      EXPECT_EQ(use.coded, 0) << spec;
      const FeedbackKey key("matrix");
      group->allreduce(have)->wait();
      use = backend_of(group)->statistics().operations.at("all_reduce");
      EXPECT_EQ(use.coded, 1) << spec;
      EXPECT_LT(use.sent_bytes, use.dense_bytes / 2) << spec;
    }
  });
}

// Deltas against what was received before: the error shrinks from call to call while the values
// stay, and nothing adds up while they move.
TEST(BackendFeedback, GatheredParametersFollowTheirShards) {
  run_ranks(2, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {"none", "quantize(bits=4)"});
    at::Tensor shard = gradient_of(ctx.rank, 0, kNumel), all = at::empty({2 * kNumel});
    const auto worst = [&] {
      return (all.narrow(0, ctx.rank * kNumel, kNumel) - shard).abs().max().item<float>();
    };
    const auto gather = [&] {
      const FeedbackKey key("weights");
      group->_allgather_base(all, shard)->wait();
    };
    gather();
    EXPECT_EQ(worst(), 0);  // the first is exact
    for (int step = 1; step <= 10; ++step) {
      shard += 0.01 * gradient_of(ctx.rank, step, kNumel);
      gather();
      EXPECT_LT(worst(), 0.01);
    }
    for (int again = 0; again < 4; ++again) gather();
    EXPECT_LT(worst(), 1e-5);
    const auto use = backend_of(group)->statistics().operations.at("all_gather");
    EXPECT_LT(use.sent_bytes, use.dense_bytes / 4);
  });
}

TEST(BackendFeedback, ANonFiniteStepLeavesResidualsAlone) {
  run_ranks(2, [](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, {.compression = "quantize(bits=2)"});
    const auto call = [&](bool broken) {
      const FeedbackKey key("weight");
      at::Tensor gradient = gradient_of(ctx.rank, 1, 2 * kNumel);
      // In the part of the other rank or in its own: both ranks must drop the step.
      if (broken && ctx.rank == 1) gradient[kNumel + 7] = std::nan("");
      return reduce_scatter(*group, gradient);
    };
    call(false);
    const at::Tensor before = backend_of(group)->state().at("parts/residual/weight");
    const at::Tensor sum = call(true);
    EXPECT_EQ(at::isnan(sum[7]).item<bool>(), ctx.rank == 1);
    EXPECT_TRUE(at::equal(before, backend_of(group)->state().at("parts/residual/weight")));
  });
}

TEST(BackendFeedback, AKeyBelongsToOneTensor) {
  EXPECT_THAT(
      errors_of<InvalidArgument>(2,
                                 [](RankContext& ctx) {
                                   const auto group = compressed_group(
                                       ctx.group, {.compression = "quantize(bits=4)"});
                                   const FeedbackKey key("weight");
                                   reduce_scatter(*group, gradient_of(ctx.rank, 0, 2 * kNumel));
                                   reduce_scatter(*group, gradient_of(ctx.rank, 0, 4 * kNumel));
                                 }),
      Each(HasSubstr("a key belongs to one tensor")));
  EXPECT_THROW(FeedbackKey(""), InvalidArgument);
}

TEST(BackendFeedback, ASavedStateGoesOnWithTheSameBits) {
  run_ranks(2, [](RankContext& ctx) {
    const BackendOptions options{"quantize(bits=3, rounding=stochastic, error_feedback=on)",
                                 "quantize(bits=4)"};
    const auto first = compressed_group(ctx.group, options);
    const auto call = [&](c10d::ProcessGroup& group, int step) {
      const FeedbackKey key("weight");
      Tensors sums = {gradient_of(ctx.rank, step, kNumel)};
      group.allreduce(sums)->wait();
      const at::Tensor part = reduce_scatter(group, gradient_of(ctx.rank, step, 2 * kNumel));
      at::Tensor all = at::empty({2 * kNumel}), shard = part.clone();
      group._allgather_base(all, shard)->wait();
      return at::cat({sums[0], all});
    };
    for (int step = 0; step < 4; ++step) call(*first, step);
    const auto saved = backend_of(first)->state();
    const auto copy = c10::make_intrusive<c10d::ProcessGroup>(
        c10::make_intrusive<c10d::PrefixStore>("again", ctx.store), ctx.rank, ctx.size);
    copy->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    copy->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO,
                     ctx.group->getBackend(c10::DeviceType::CPU));
    const auto second = compressed_group(copy, options);
    backend_of(second)->load_state(saved);
    for (int step = 4; step < 7; ++step)
      EXPECT_TRUE(at::equal(call(*first, step), call(*second, step))) << step;
    EXPECT_THROW(backend_of(second)->load_state({{"nonsense", at::zeros({1})}}), InvalidArgument);
    EXPECT_EQ(backend_of(second)->state().size(), saved.size());  // the mistake ended nothing
  });
}

// Random numbers come from the steps, and differences are added to what was received.
TEST(BackendFeedback, StatesThatDoNotBelongTogetherAreRefusedOnAllRanks) {
  const BackendOptions options = {.compression = "quantize(bits=4)", .min_numel = 16};
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
    const auto group = compressed_group(ctx.group, options);
    Saved early;
    for (int step = 0; step < 3; ++step) {
      const FeedbackKey key("weight");
      Tensors sums = {gradient_of(ctx.rank, step, kNumel)};
      group->allreduce(sums)->wait();
      if (step == 1) early = backend_of(group)->state();
    }
    const Saved late = backend_of(group)->state();
    backend_of(group)->load_state(late);
    backend_of(group)->load_state(ctx.rank == 0 ? late : early);
  });
  EXPECT_THAT(errors, ::testing::Each(::testing::HasSubstr(
                          "'calls under 'weight': 3' on rank 0 and 'calls under 'weight': 2' on "
                          "rank 1")));
  EXPECT_THAT(errors_of<InvalidArgument>(2,
                                         [&](RankContext& ctx) {
                                           const auto group = compressed_group(ctx.group, options);
                                           Saved state;
                                           if (ctx.rank == 1) state["x"] = at::zeros({1});
                                           backend_of(group)->load_state(state);
                                         }),
              ::testing::Each(::testing::HasSubstr("rank 1: 'x' is not of the state")));
}

}  // namespace
}  // namespace thinwire
