// Layers that no rank uses in a step: whatever they are owed must stay owed, for whoever asked for
// the mean throws it away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

#include "averager_fixture.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using testing::expect_replicas;
using testing::layer_of;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

const LayerShapes kShapes = {{"w", {40, 30}}, {"spare", {50, 24}}, {"v", {900}}};
constexpr std::size_t kSpare = 1;
constexpr int kSteps = 24;

enum class Unused { kNever, kOnSome, kOnAll };

struct Case {
  const char* spec;
  int world;
  Unused unused;
  at::ScalarType dtype = at::kFloat;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.spec << " on " << c.world << ", unused on "
             << (c.unused == Unused::kNever ? "none"
                                            : (c.unused == Unused::kOnSome ? "some" : "all"));
}

bool uses_spare(Unused unused, std::int64_t step, int rank) {
  if (unused == Unused::kNever || step % 3 == 0) return true;
  return unused == Unused::kOnSome && rank == 0;
}

// What the mean of `spare` should hold and does not: gradients of all ranks, less the updates, less
// what is still owed; in units of the gradients' norm.
double lost(const Case& c, bool says_so) {
  at::Tensor balance = at::zeros({1200}, at::kDouble);
  at::Tensor norm = at::zeros({1}, at::kDouble);
  std::mutex mutex;
  std::vector<AveragerState> states(static_cast<std::size_t>(c.world));
  run_ranks(c.world, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.chunk_bytes = 2048});
    const Plan plan = uniform_plan(kShapes, c.spec);
    at::Tensor given = at::zeros({1200}, at::kDouble), applied = at::zeros({1200}, at::kDouble);
    for (std::int64_t step = 0; step < kSteps; ++step) {
      Bucket bucket = random_bucket(kShapes, static_cast<std::uint64_t>(step), ctx.rank, c.dtype);
      bucket.may_hold_unused_layers = says_so;
      bool used = false;
      for (int r = 0; r < ctx.size; ++r) used = used || uses_spare(c.unused, step, r);
      if (!uses_spare(c.unused, step, ctx.rank)) layer_of(bucket, kSpare).fill_(-0.0);
      given += layer_of(bucket, kSpare).to(at::kDouble);
      averager.average(bucket, plan, step);
      expect_replicas(*ctx.group, bucket.buffer);
      // c10d's Reducer copies no mean to a parameter that no rank used.
      if (used) applied += layer_of(bucket, kSpare).to(at::kDouble);
      if (!used && says_so) {
        EXPECT_TRUE((layer_of(bucket, kSpare) == 0).all().item<bool>());
      }
    }
    const std::lock_guard lock(mutex);
    states[static_cast<std::size_t>(ctx.rank)] = averager.state();
    balance += given / ctx.size;
    norm += given.norm();
    if (ctx.rank == 0) balance -= applied;
  });
  AveragerState owed = merge_states(states);
  const auto take = [&](std::vector<float>& values) {
    if (values.empty()) return;
    balance -= at::from_blob(values.data(), {1200}, at::kFloat).to(at::kDouble);
  };
  take(owed.residuals["spare"]);
  take(owed.momentum["spare"].residual);
  return (balance.norm() / norm).item<double>();
}

class UnusedLayers : public ::testing::TestWithParam<Case> {};

TEST_P(UnusedLayers, LoseNothing) {
  EXPECT_LE(lost(GetParam(), true), GetParam().dtype == at::kFloat ? 1e-5 : 1e-3);
  // What the Reducer throws away is lost where nobody says that this may happen.
  if (GetParam().unused != Unused::kOnAll) return;
  EXPECT_GE(lost(GetParam(), false), 0.005);
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const char* spec :
       {"topk(density=0.05)", "topk(density=0.05, momentum=0)", "ternary(density=0.05)",
        "onebit(bucket=64)", "quantize(bits=2, bucket=64, error_feedback=on)",
        "randomk(density=0.1)", "powersgd(rank=1)", "ecsq(bits=1.5)",
        "cast(fp8_e4m3, error_feedback=on)"}) {
    for (const Unused unused : {Unused::kNever, Unused::kOnSome, Unused::kOnAll}) {
      cases.push_back({spec, 2, unused});
      if (unused == Unused::kOnAll) cases.push_back({spec, 3, unused});
    }
  }
  cases.push_back({"topk(density=0.05)", 2, Unused::kOnAll, at::kHalf});
  cases.push_back({"onebit(bucket=64)", 2, Unused::kOnAll, at::kDouble});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Codecs, UnusedLayers, ::testing::ValuesIn(cases()));

// A velocity that nobody feeds does not decay, and nothing of the layer is sent.
TEST(UnusedLayers, AreNeitherCorrectedNorSent) {
  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, "topk(density=0.5, momentum=0.9)");
    std::vector<std::uint64_t> sent;
    AveragerState before;
    for (std::int64_t step = 0; step < 4; ++step) {
      Bucket bucket = random_bucket(kShapes, static_cast<std::uint64_t>(step), ctx.rank);
      bucket.may_hold_unused_layers = true;
      if (step >= 2) layer_of(bucket, kSpare).zero_();
      const std::uint64_t bytes = averager.traffic().sent_bytes;
      averager.average(bucket, plan, step);
      sent.push_back(averager.traffic().sent_bytes - bytes);
      if (step == 1) before = averager.state();
    }
    EXPECT_TRUE(averager.state().momentum.at("spare") == before.momentum.at("spare"));
    EXPECT_FALSE(averager.state().momentum.at("w") == before.momentum.at("w"));
    // 600 entries of a float and about one bit of index less.
    EXPECT_LE(sent[3] + 2400, sent[1]);
  });
}

// NaN is a gradient, too.
TEST(UnusedLayers, NonFiniteValuesAreSeen) {
  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
    bucket.may_hold_unused_layers = true;
    layer_of(bucket, kSpare).zero_();
    if (ctx.rank == 1) {
      layer_of(bucket, kSpare)[7] = std::numeric_limits<float>::quiet_NaN();
    }
    averager.average(bucket, uniform_plan(kShapes, "topk(density=0.1)"), 0);
    EXPECT_FALSE(at::isfinite(layer_of(bucket, kSpare)).all().item<bool>());
  });
}

// What a layer is owed from compressed steps is not paid to nobody in an uncompressed one.
TEST(UnusedLayers, KeepTheirDebtInUncompressedSteps) {
  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    for (std::int64_t step = 0; step < 3; ++step) {
      Bucket bucket = random_bucket(kShapes, static_cast<std::uint64_t>(step), ctx.rank);
      bucket.may_hold_unused_layers = true;
      if (step == 1) layer_of(bucket, kSpare).zero_();
      averager.average(bucket, step == 0 ? uniform_plan(kShapes, "topk(density=0.1)") : Plan(),
                       step);
      EXPECT_EQ(averager.feedback().residual("w").empty(), step > 0);
      EXPECT_EQ(averager.feedback().residual("spare").empty(), step > 1);
    }
  });
}

}  // namespace
}  // namespace thinwire::comm
