#include "thinwire/comm/average/reduce/spectral_reduce.h"

#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/comm/average/averager_fixture.h"
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

const LayerShapes kShapes = {
    {"linear", {64, 200}}, {"convolution", {32, 8, 3, 3}}, {"bias", {300}}, {"tall", {500, 20}}};

// Gradients as training has them: few directions that stay, the same on all ranks, and noise.
Bucket directed_bucket(std::uint64_t seed, int rank) {
  Bucket bucket = random_bucket(kShapes, seed, rank);
  bucket.buffer.mul_(0.15f);
  for (std::size_t i = 0; i < kShapes.size(); ++i) {
    at::Tensor layer = layer_of(bucket, i);
    if (kShapes[i].second.size() < 2) continue;
    const std::int64_t rows = kShapes[i].second[0], cols = layer.numel() / rows;
    auto fixed = at::detail::createCPUGenerator(17 + i);
    auto moving = at::detail::createCPUGenerator(1000 * seed + i);
    const at::Tensor left = at::randn({rows, 5}, fixed, at::kFloat);
    const at::Tensor right = at::randn({5, cols}, fixed, at::kFloat);
    layer.view({rows, cols}).add_(at::matmul(left * at::randn({5}, moving, at::kFloat), right));
  }
  return bucket;
}

at::Tensor directed_mean(std::uint64_t seed, int world) {
  at::Tensor sum = directed_bucket(seed, 0).buffer;
  for (int r = 1; r < world; ++r) sum += directed_bucket(seed, r).buffer;
  return sum / world;
}

// Relative error of the last steps' means.
double error_of(const std::string& spec, int world, int steps) {
  double lost = 0, whole = 0;
  run_ranks(world, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, spec);
    for (int step = 0; step < steps; ++step) {
      Bucket bucket = directed_bucket(static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
      if (ctx.rank > 0 || step < steps / 2) continue;
      const at::Tensor exact = directed_mean(static_cast<std::uint64_t>(step), world);
      lost += (bucket.buffer - exact).square().sum().item<double>();
      whole += exact.square().sum().item<double>();
    }
  });
  return std::sqrt(lost / whole);
}

TEST(SpectralReduce, LosesFarLessThanEcsqAtEqualBits) {
  const double spectral = error_of("spectral(bits=1, directions=8)", 3, 16);
  const double ecsq = error_of("ecsq(bits=1)", 3, 16);
  EXPECT_LT(spectral, 0.5 * ecsq);
  EXPECT_LT(spectral, 0.2);
}

TEST(SpectralReduce, SendsTheBitsOfTheSpecAndKeepsReplicasEqual) {
  constexpr int kWorld = 4;
  run_ranks(kWorld, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.check_replicas_every = 1, .chunk_bytes = 1 << 16});
    const Plan plan = uniform_plan(kShapes, "spectral(bits=1.5, every=5)");
    std::uint64_t before = 0;
    for (int step = 0; step < 24; ++step) {
      Bucket bucket = directed_bucket(static_cast<std::uint64_t>(step), ctx.rank);
      before = averager.traffic().sent_bytes;
      averager.average(bucket, plan, step);
      averager.agree();
      expect_replicas(*ctx.group, bucket.buffer);
    }
    const auto numel = static_cast<double>(directed_bucket(0, 0).buffer.numel());
    const double sent = 8.0 * static_cast<double>(averager.traffic().sent_bytes - before);
    // Headers, prefixes, margins and a byte for each class.
    const double headers = 8.0 * 2 * 2 * 180 / numel;
    EXPECT_NEAR(sent / (numel * 2 * (kWorld - 1) / kWorld), 1.5, 0.2 + headers);
  });
}

// What one rank holds does not depend on its processor.
TEST(SpectralReduce, GivesTheSameBitsOnEveryTarget) {
  std::vector<at::Tensor> expected;
  AveragerState expected_state;
  for (const auto& target : kernels::simd_targets()) {
    kernels::set_simd_target(target);
    run_ranks(2, [&](RankContext& ctx) {
      BucketAverager averager(ctx.group);
      const Plan plan = uniform_plan(kShapes, "spectral(bits=1, every=3)");
      std::vector<at::Tensor> found;
      for (int step = 0; step < 8; ++step) {
        Bucket bucket = directed_bucket(static_cast<std::uint64_t>(step), ctx.rank);
        averager.average(bucket, plan, step);
        found.push_back(bucket.buffer);
      }
      if (ctx.rank > 0) return;
      if (expected.empty()) {
        expected = found;
        expected_state = averager.state();
      }
      for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_TRUE(at::equal(found[i], expected[i])) << target << ", step " << i;
      }
      EXPECT_TRUE(averager.state() == expected_state) << target;
    });
  }
  kernels::set_simd_target("");
}

TEST(SpectralReduce, BasesAreTheSameOnAllRanksAndPartOfTheState) {
  std::vector<AveragerState> states(3);
  run_ranks(3, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, "spectral(bits=1, every=4)");
    for (int step = 0; step < 9; ++step) {
      Bucket bucket = directed_bucket(static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
    }
    states[static_cast<std::size_t>(ctx.rank)] = averager.state();
  });
  EXPECT_EQ(states[0].bases.size(), kShapes.size());
  EXPECT_TRUE(states[1].bases == states[0].bases);
  EXPECT_TRUE(states[2].bases == states[0].bases);
  EXPECT_EQ(states[0].bases.at("linear").basis.steps, 9);
  EXPECT_TRUE(states[0].bases.at("linear").holds_residuals);
  const std::map<std::string, std::int64_t, std::less<>> numel = {
      {"linear", 12800}, {"convolution", 2304}, {"bias", 300}, {"tall", 10000}};
  check_fits(states[0], numel);
  auto other = numel;
  other["linear"] = 12801;
  EXPECT_THROW(check_fits(states[0], other), InvalidArgument);
}

// Layers that stop taking part and come back, so that others' places change.
TEST(SpectralReduce, TakesLayersThatComeAndGo) {
  run_ranks(3, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.check_replicas_every = 1});
    Plan all = uniform_plan(kShapes, "spectral(bits=2, every=3)");
    Plan fewer = all;
    fewer.set("convolution", parse_layer_setting("none"));
    fewer.set("tall", parse_layer_setting("spectral(bits=2, every=3, error_feedback=off)"));
    at::Tensor given = at::zeros({25404}, at::kDouble), applied = given.clone();
    for (int step = 0; step < 20; ++step) {
      const auto seed = static_cast<std::uint64_t>(step);
      Bucket bucket = directed_bucket(seed, ctx.rank);
      if (step < 19) given += directed_mean(seed, 3).to(at::kDouble);
      if (step == 19) bucket.buffer.zero_();
      averager.average(bucket, step / 4 % 2 == 1 ? fewer : all, step);
      averager.agree();
      applied += bucket.buffer.to(at::kDouble);
      expect_replicas(*ctx.group, bucket.buffer);
    }
    // The layers with feedback throughout owe no more than a few steps' losses.
    const auto error = [&](std::size_t i) {
      Bucket sums = directed_bucket(0, 0);
      sums.buffer = applied - given;
      const double lost = layer_of(sums, i).norm().item<double>();
      sums.buffer = given;
      return lost / layer_of(sums, i).norm().item<double>();
    };
    EXPECT_LT(error(0), 0.3);
    EXPECT_LT(error(1), 0.3);
  });
}

TEST(SpectralReduce, RefusesASecondResidualWithoutTheFirst) {
  EXPECT_THROW(parse_layer_setting("spectral(bits=1, error_feedback=off, second_residual=on)"),
               InvalidArgument);
  EXPECT_THROW(parse_layer_setting("spectral(as=quantize(bits=4))"), InvalidArgument);
  EXPECT_THROW(parse_layer_setting("spectral(bits=1, step=2)"), InvalidArgument);
  EXPECT_THROW(parse_layer_setting("spectral(directions=0)"), InvalidArgument);
  EXPECT_FALSE(parse_layer_setting("spectral(bits=1, error_feedback=off)").uses_second_residual());
}

}  // namespace
}  // namespace thinwire::comm
