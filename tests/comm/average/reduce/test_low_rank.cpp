#include "thinwire/comm/average/reduce/low_rank.h"

#include <ATen/ops/linalg_svd.h>
#include <gtest/gtest.h>

#include "thinwire/tests/comm/average/averager_fixture.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using testing::layer_of;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

const LayerShapes kMatrix = {{"w", {30, 24}}};

// Of the matrices of all ranks.
at::Tensor mean_matrix(int world) {
  at::Tensor sum = at::zeros({30, 24}, at::kDouble);
  for (int r = 0; r < world; ++r) {
    sum += random_bucket(kMatrix, 5, r).buffer.to(at::kDouble).view({30, 24});
  }
  return sum / world;
}

double best_error(const at::Tensor& matrix, std::int64_t rank) {
  const at::Tensor values = std::get<1>(at::linalg_svd(matrix, /*full_matrices=*/false));
  return values.narrow(0, rank, values.numel() - rank).norm().item<double>();
}

// With the same gradients in every step and no feedback the warm start is a power iteration: the
// mean tends to the best approximation of its rank.
TEST(LowRank, WarmStartReachesTheTruncatedSvd) {
  for (const int rank : {1, 3}) {
    run_ranks(2, [&](RankContext& ctx) {
      const at::Tensor matrix = mean_matrix(2);
      const double best = best_error(matrix, rank);
      const Plan plan =
          uniform_plan(kMatrix, concat("powersgd(rank=", rank, ", error_feedback=off)"));
      BucketAverager averager(ctx.group, {.seed = 3});
      double first = 0, last = 0;
      for (int step = 0; step < 300; ++step) {
        Bucket bucket = random_bucket(kMatrix, 5, ctx.rank);
        averager.average(bucket, plan, step);
        last = (bucket.buffer.view({30, 24}).to(at::kDouble) - matrix).norm().item<double>();
        if (step == 0) first = last;
      }
      EXPECT_GT(first, 1.02 * best) << "one step from a random start is not enough";
      EXPECT_LE(last, 1.0001 * best);
      EXPECT_GE(last, 0.9999 * best);
    });
  }
}

// A coded P spans nearly the same, and Q loses what its codec loses.
TEST(LowRank, CodedFactorsTakeFewerBytesAndLoseLittle) {
  const LayerShapes shapes = {{"w", {300, 200}}};
  run_ranks(3, [&](RankContext& ctx) {
    const auto run = [&](const char* spec, double& bytes) {
      BucketAverager averager(ctx.group, {.seed = 3});
      at::Tensor sum, exact;
      for (int step = 0; step < 12; ++step) {
        Bucket bucket = random_bucket(shapes, 5, ctx.rank);
        averager.average(bucket, uniform_plan(shapes, spec), step);
        sum = step == 0 ? bucket.buffer.clone() : sum + bucket.buffer;
      }
      bytes = static_cast<double>(averager.traffic().sent_bytes);
      exact = at::zeros_like(sum);
      for (int r = 0; r < 3; ++r) exact += random_bucket(shapes, 5, r).buffer * 4;
      return (sum - exact).norm().item<double>();
    };
    double floats = 0, narrow = 0, bits8 = 0, bits5 = 0;
    const double error = run("powersgd(rank=4)", floats);
    EXPECT_LT(run("powersgd(rank=4, factors=bf16)", narrow), 1.02 * error);
    EXPECT_LT(run("powersgd(rank=4, factors=int8)", bits8), 1.02 * error);
    EXPECT_LT(run("powersgd(rank=4, factors=ecsq(bits=5))", bits5), 1.02 * error);
    EXPECT_LT(narrow, 0.53 * floats);
    EXPECT_LT(bits5, 0.26 * floats);
    EXPECT_LT(bits8, 0.31 * floats);
  });
}

// Gradients whose singular values fall by a third from one to the next, as those of training do.
Bucket steep_bucket(const LayerShapes& shapes, std::uint64_t seed, int rank) {
  Bucket bucket = random_bucket(shapes, seed, rank);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const std::int64_t cols = shapes[i].second[1];
    const at::Tensor falling = at::pow(2.0 / 3, at::arange(cols, at::kFloat));
    layer_of(bucket, i).view({shapes[i].second[0], cols}).mul_(falling);
  }
  return bucket;
}

// The bits of the spec are those of an element of the factors.
TEST(LowRank, SlotsOfFactorsTakeTheBitsOfTheSpec) {
  const LayerShapes shapes = {{"w", {300, 200}}, {"v", {400, 100}}, {"bias", {64}}};
  run_ranks(3, [&](RankContext& ctx) {
    const double dense = 64, factors = 4 * (300 + 200 + 400 + 100);
    // Two ways in each of two means.
    const double elements = factors * 2 * 2 / 3;
    const auto bits_taken = [&](int bits) {
      Plan plan = uniform_plan(shapes, concat("powersgd(rank=4, factors=ecsq(bits=", bits, "))"));
      plan.set("bias", {});
      BucketAverager averager(ctx.group, {.seed = 3});
      std::uint64_t before = 0;
      for (int step = 0; step < 12; ++step) {
        Bucket bucket = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
        before = averager.traffic().sent_bytes;
        averager.average(bucket, plan, step);
        testing::expect_replicas(*ctx.group, bucket.buffer);
      }
      const auto steps = averager.state().shared_steps.at(concat("factors=ecsq(bits=", bits, ")"));
      EXPECT_EQ(steps.groups.size(), 2u) << "one step for P and Q";
      const double sent = 8.0 * static_cast<double>(averager.traffic().sent_bytes - before);
      return (sent - 2 * (2.0 / 3) * 32 * dense) / elements;
    };
    const double three = bits_taken(3), five = bits_taken(5);
    EXPECT_NEAR(five - three, 2, 0.1);
    // Headers, prefixes and margins, the same for both: below 200 bytes to each of two ranks.
    EXPECT_GT(three, 3);
    EXPECT_LT(three, 3 + 8.0 * 2 * 2 * 2 * 200 / elements);
  });
}

// At equal bits: columns are large and small ones, for which no number of bits for all is right.
TEST(LowRank, OneStepForAllColumnsLosesLessThanAScaleForEachRun) {
  const LayerShapes shapes = {{"w", {256, 64}}, {"v", {256, 128}}};
  run_ranks(2, [&](RankContext& ctx) {
    const auto error_of = [&](const char* spec) {
      BucketAverager averager(ctx.group, {.seed = 3});
      double lost = 0;
      for (int step = 0; step < 12; ++step) {
        Bucket bucket = steep_bucket(shapes, 5, ctx.rank);
        averager.average(bucket, uniform_plan(shapes, spec), step);
        if (step < 6) continue;
        const at::Tensor exact =
            (steep_bucket(shapes, 5, 0).buffer + steep_bucket(shapes, 5, 1).buffer) / 2;
        lost += (bucket.buffer - exact).square().sum().item<double>();
      }
      return lost;
    };
    // Found: 0.073 and 0.072. The first is 0.18 where P is a product with a Q that is not
    // orthonormal, the second 0.082 where what Q loses is not owed.
    EXPECT_LT(error_of("powersgd(rank=8, factors=ecsq(bits=4), error_feedback=off)"),
              0.1 * error_of("powersgd(rank=8, factors=int4, error_feedback=off)"));
    EXPECT_LT(error_of("powersgd(rank=8, factors=ecsq(bits=4))"),
              0.077 * error_of("powersgd(rank=8, factors=int4)"));
  });
}

TEST(LowRank, MoreIterationsComeNearerInOneStep) {
  run_ranks(2, [](RankContext& ctx) {
    const at::Tensor matrix = mean_matrix(2);
    double errors[2];
    for (const int i : {0, 1}) {
      BucketAverager averager(ctx.group, {.seed = 3});
      Bucket bucket = random_bucket(kMatrix, 5, ctx.rank);
      averager.average(
          bucket,
          uniform_plan(kMatrix, i == 0 ? "powersgd(rank=2)" : "powersgd(rank=2, iterations=8)"), 0);
      errors[i] = (bucket.buffer.view({30, 24}).to(at::kDouble) - matrix).norm().item<double>();
    }
    EXPECT_LT(errors[1], errors[0]);
    EXPECT_LE(errors[1], 1.05 * best_error(matrix, 2));
  });
}

// The mean lies in the span of P, which all ranks share, so its rank is that asked for.
TEST(LowRank, ARankChangeKeepsTheWarmStart) {
  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.seed = 9});
    const auto step = [&](int number, int rank) {
      Bucket bucket = random_bucket(kMatrix, 5, ctx.rank);
      averager.average(
          bucket, uniform_plan(kMatrix, concat("powersgd(rank=", rank, ", error_feedback=off)")),
          number);
      return (bucket.buffer.view({30, 24}).to(at::kDouble) - mean_matrix(2)).norm().item<double>();
    };
    for (int i = 0; i < 200; ++i) step(i, 4);
    const auto four = averager.state().warm_starts.at("w");
    EXPECT_EQ(four.q.size(), 4u * 24);
    // Fewer columns: the first, which hold the largest singular values; at once as good as can be.
    EXPECT_LE(step(200, 2), 1.001 * best_error(mean_matrix(2), 2));
    EXPECT_EQ(averager.state().warm_starts.at("w").q.size(), 2u * 24);
    // More columns: never worse than the two that are kept.
    EXPECT_LE(step(201, 5), 1.001 * best_error(mean_matrix(2), 2));
    EXPECT_EQ(averager.state().warm_starts.at("w").q.size(), 5u * 24);
  });
}

TEST(LowRank, SmallLayersTravelExactlyInTheSameExchange) {
  const LayerShapes shapes = {{"w", {64, 64}}, {"tiny", {3, 3}}, {"bias", {64}}};
  run_ranks(3, [&](RankContext& ctx) {
    Plan plan = uniform_plan(shapes, "powersgd(rank=2)");
    plan.set("bias", {});
    BucketAverager averager(ctx.group, {.chunk_bytes = std::size_t{1} << 20});
    Bucket bucket = random_bucket(shapes, 1, ctx.rank);
    averager.average(bucket, plan, 0);
    for (const std::size_t i : {1u, 2u}) {
      at::Tensor sum = at::zeros({bucket.layers[i].numel()});
      for (int r = 0; r < 3; ++r) {
        const Bucket theirs = random_bucket(shapes, 1, r);
        sum += layer_of(theirs, i);
      }
      EXPECT_TRUE(at::equal(layer_of(bucket, i), sum / 3.0f)) << "layer " << i;
    }
    // Two exchanges: P with the dense layers, and Q; each in two legs to two ranks.
    const std::uint64_t floats = 2 * 64 + 9 + 64 + 2 * 64;
    const std::uint64_t sent = averager.traffic().sent_bytes;
    // And the ranks agree twice: 16 bytes to each of two ranks, and an all_reduce of 8.
    EXPECT_LE(sent, 2 * 2 * floats * 4 / 3 + 8 * 64 + 32 + 2 * 16 + 11);
    EXPECT_GE(sent, 2 * 2 * floats * 4 / 3 + 8 * 64 - 32);
  });
}

TEST(LowRank, ZeroGradientsDoNotSpoilTheNextStep) {
  run_ranks(2, [](RankContext& ctx) {
    const Plan plan = uniform_plan(kMatrix, "powersgd(rank=2)");
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kMatrix, 0, ctx.rank);
    bucket.buffer.zero_();
    averager.average(bucket, plan, 0);
    EXPECT_EQ(bucket.buffer.abs().max().item<float>(), 0);
    bucket = random_bucket(kMatrix, 1, ctx.rank);
    averager.average(bucket, plan, 1);
    EXPECT_GT(bucket.buffer.norm().item<float>(), 1);
  });
}

}  // namespace
}  // namespace thinwire::comm
