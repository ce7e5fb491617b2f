#include "thinwire/comm/average/reduce/slot_reduce.h"

#include <gtest/gtest.h>

#include <cmath>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/compressors/codecs/codec_table.h"
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

TEST(OwnerSlices, HoldEveryElementOnceAndEqualSharesOfLargeLayers) {
  const std::vector<std::int64_t> layers = {5000, 7, 300, 100000, 1, 8192};
  for (const int world : {1, 2, 3, 5}) {
    for (const int chunks : {1, 3}) {
      const auto slices = owner_slices(layers, world, chunks);
      ASSERT_EQ(slices.size(), static_cast<std::size_t>(chunks));
      std::vector<std::vector<int>> seen;
      for (const std::int64_t numel : layers) seen.emplace_back(numel, 0);
      for (const auto& owners : slices) {
        ASSERT_EQ(owners.size(), static_cast<std::size_t>(world));
        std::int64_t most = 0, least = 1 << 30;
        for (const Slice& slice : owners) {
          std::int64_t numel = 0;
          for (const Piece& piece : slice.pieces) {
            numel += piece.numel;
            for (std::int64_t i = 0; i < piece.numel; ++i) {
              ++seen[piece.layer][static_cast<std::size_t>(piece.begin + i)];
            }
          }
          EXPECT_EQ(numel, slice.numel);
          most = std::max(most, numel);
          least = std::min(least, numel);
        }
        EXPECT_LE(most - least, 512 * world);
      }
      for (const auto& layer : seen) {
        EXPECT_TRUE(std::ranges::all_of(layer, [](int times) { return times == 1; }));
      }
    }
  }
}

const LayerShapes kShapes = {{"a", {64, 300}}, {"b", {40000}}, {"c", {10}}, {"d", {128, 128}}};

// Gradients whose size falls from layer to layer, and changes with the step.
Bucket sloped_bucket(std::uint64_t seed, int rank, float scale = 1) {
  Bucket bucket = random_bucket(kShapes, seed, rank);
  for (std::size_t i = 0; i < kShapes.size(); ++i) {
    layer_of(bucket, i).mul_(scale * std::pow(0.2f, static_cast<float>(i)));
  }
  return bucket;
}

at::Tensor exact_mean(std::uint64_t seed, int world) {
  at::Tensor sum = sloped_bucket(seed, 0).buffer;
  for (int r = 1; r < world; ++r) sum += sloped_bucket(seed, r).buffer;
  return sum / world;
}

TEST(SlotReduce, SendsTheBitsOfTheSpec) {
  constexpr int kWorld = 3;
  for (const double bits : {0.5, 2.5}) {
    run_ranks(kWorld, [&](RankContext& ctx) {
      BucketAverager averager(ctx.group, {.chunk_bytes = std::size_t{1} << 17});
      const Plan plan = uniform_plan(kShapes, concat("ecsq(bits=", bits, ")"));
      std::uint64_t before = 0;
      for (int step = 0; step < 12; ++step) {
        Bucket bucket = sloped_bucket(static_cast<std::uint64_t>(step), ctx.rank);
        before = averager.traffic().sent_bytes;
        averager.average(bucket, plan, step);
        expect_replicas(*ctx.group, bucket.buffer);
      }
      const auto numel = static_cast<double>(sloped_bucket(0, 0).buffer.numel());
      const double sent = 8.0 * static_cast<double>(averager.traffic().sent_bytes - before);
      // Headers, prefixes and margins of two chunks, 150 bytes each.
      const double headers = 8.0 * 2 * 2 * 2 * 150 / numel;
      EXPECT_NEAR(sent / (numel * 2 * (kWorld - 1) / kWorld), bits, 0.05 * bits + headers);
    });
  }
}

// The mean's error by layer, relative to the layer.
std::vector<double> errors(const char* spec, int world) {
  std::vector<double> result;
  run_ranks(world, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, spec);
    at::Tensor difference;
    for (int step = 0; step < 8; ++step) {
      Bucket bucket = sloped_bucket(static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
      difference = bucket.buffer - exact_mean(static_cast<std::uint64_t>(step), world);
    }
    if (ctx.rank > 0) return;
    Bucket lost = sloped_bucket(0, 0);
    lost.buffer = difference;
    for (std::size_t i = 0; i < kShapes.size(); ++i) {
      result.push_back(layer_of(lost, i).square().mean().item<double>());
    }
  });
  return result;
}

TEST(SlotReduce, GivesAllLayersOneStepAndLosesLessThanQuantizeWithFewerBits) {
  const auto ecsq = errors("ecsq(bits=2.5, error_feedback=off)", 2);
  const auto quantize = errors("quantize(bits=4, error_feedback=off)", 2);
  const auto total = [](const std::vector<double>& of_layers) {
    return of_layers[0] * 19200 + of_layers[1] * 40000 + of_layers[3] * 16384;
  };
  EXPECT_LT(total(ecsq), total(quantize));
  // The layer of large values is coded finely, that of small ones hardly at all.
  EXPECT_LT(ecsq[0], 0.05);
  EXPECT_NEAR(ecsq[3] / std::pow(0.2, 6), 0.5, 0.5);
}

TEST(SlotReduce, FollowsGradientsThatShrinkAndGrow) {
  run_ranks(2, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, "ecsq(bits=3, error_feedback=off)");
    float scale = 1;
    for (int step = 0; step < 24; ++step) {
      if (step == 8) scale = 1e-4f;
      if (step == 16) scale = 300;
      Bucket bucket = sloped_bucket(static_cast<std::uint64_t>(step), ctx.rank, scale);
      averager.average(bucket, plan, step);
      const at::Tensor exact = scale * exact_mean(static_cast<std::uint64_t>(step), 2);
      const double error = ((bucket.buffer - exact).norm() / exact.norm()).item<double>();
      if (step % 8 >= 3 || step == 0) {
        EXPECT_LT(error, 0.2) << "step " << step;
      }
      expect_replicas(*ctx.group, bucket.buffer);
    }
  });
}

// As of an embedding, of whose rows a batch uses few: some in each step, most seldom.
Bucket rows_in_use(std::uint64_t step, int rank) {
  constexpr std::int64_t kRows = 4096, kOften = 48, kSeldom = 97;
  Bucket bucket = random_bucket({{"rows", {kRows, 64}}}, 31 * step, rank);
  const at::Tensor rows = layer_of(bucket, 0).view({kRows, 64});
  for (std::int64_t row = 0; row < kRows; ++row) {
    const bool used = row < kOften || (row + static_cast<std::int64_t>(step)) % kSeldom == 0;
    rows[row].mul_(used ? (row < kOften ? 1.0f : 0.1f) : 0.0f);
  }
  return bucket;
}

TEST(SlotReduce, SlotsFollowWhatEachSliceTakes) {
  for (const char* spec : {"ecsq(error=0.2, error_feedback=off)", "ecsq(as=quantize(bits=4))"}) {
    run_ranks(3, [&](RankContext& ctx) {
      BucketAverager averager(ctx.group, {.chunk_bytes = std::size_t{1} << 18});
      const Plan plan = uniform_plan({{"rows", {4096, 64}}}, spec);
      for (std::uint64_t step = 0; step < 10; ++step) {
        const std::uint64_t before = averager.traffic().sent_bytes;
        Bucket bucket = rows_in_use(step, ctx.rank);
        at::Tensor exact = at::zeros_like(bucket.buffer);
        for (int r = 0; r < 3; ++r) exact += rows_in_use(step, r).buffer;
        exact /= 3;
        averager.average(bucket, plan, static_cast<std::int64_t>(step));
        expect_replicas(*ctx.group, bucket.buffer);
        if (step == 0) continue;  // nobody knows yet what it takes
        const auto sent = static_cast<double>(averager.traffic().sent_bytes - before);
        EXPECT_LT(8 * sent / static_cast<double>(bucket.buffer.numel()), 0.5) << step;
        if (step > 3) {
          EXPECT_LT(((bucket.buffer - exact).norm() / exact.norm()).item<double>(), 0.4) << step;
        }
      }
    });
  }
}

TEST(SlotReduce, ZeroGradientsTakeNoStepAndTheNextOnesDo) {
  run_ranks(2, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, "ecsq(bits=3, error_feedback=off)");
    for (int step = 0; step < 4; ++step) {
      Bucket bucket = sloped_bucket(5, ctx.rank, step < 2 ? 0.0f : 1e-6f);
      averager.average(bucket, plan, step);
      if (step < 2) {
        EXPECT_TRUE(at::equal(bucket.buffer, at::zeros_like(bucket.buffer)));
      }
      if (step < 2) continue;
      const at::Tensor exact = 1e-6f * exact_mean(5, 2);
      EXPECT_LT(((bucket.buffer - exact).norm() / exact.norm()).item<double>(), 0.3);
    }
  });
}

TEST(SlotReduce, TravelsWithOtherCodecsInOneBucket) {
  run_ranks(3, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.check_replicas_every = 1});
    Plan plan = uniform_plan(kShapes, "ecsq(bits=6)");
    plan.set("b", parse_layer_setting("ecsq(bits=4)"));
    plan.set("c", parse_layer_setting("none"));
    for (int step = 0; step < 3; ++step) {
      Bucket bucket = sloped_bucket(static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
      const at::Tensor exact = exact_mean(static_cast<std::uint64_t>(step), 3);
      EXPECT_TRUE(at::allclose(layer_of(bucket, 2), exact.narrow(0, 59200, 10)));
      EXPECT_LT(((bucket.buffer - exact).norm() / exact.norm()).item<double>(), 0.1);
    }
    EXPECT_EQ(averager.state().shared_steps.size(), 2u);
  });
}

}  // namespace
}  // namespace thinwire::comm
