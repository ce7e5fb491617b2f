#include "thinwire/comm/average/bucket_averager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "averager_fixture.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
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
    {"conv", {8, 3, 3, 3}}, {"bias", {8}}, {"fc", {1031, 7}}, {"tiny", {1}}, {"wide", {3, 2048}}};

at::Tensor exact_mean(const LayerShapes& shapes, std::uint64_t seed, int world) {
  at::Tensor sum = random_bucket(shapes, seed, 0).buffer.to(at::kDouble);
  for (int r = 1; r < world; ++r) sum += random_bucket(shapes, seed, r).buffer;
  return sum / world;
}

double relative_error(const at::Tensor& found, const at::Tensor& exact) {
  return ((found.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

// ---- every kind of codec on 1 to 4 ranks -------------------------------------------------------

struct Kind {
  const char* spec;
  double tolerance;  // relative error of the average that one step may have
};

class AverageOf : public ::testing::TestWithParam<std::tuple<Kind, int>> {};

TEST_P(AverageOf, IsNearTheMeanAndTheSameBitsEverywhere) {
  const auto [kind, world] = GetParam();
  run_ranks(world, [kind = kind](RankContext& ctx) {
    // Chunks far smaller than the bucket, so that the pipeline has several in flight.
    BucketAverager averager(ctx.group, {.seed = 7, .check_replicas_every = 1, .chunk_bytes = 8192});
    const Plan plan = uniform_plan(kShapes, kind.spec);
    for (int step = 0; step < 3; ++step) {
      Bucket bucket = random_bucket(kShapes, static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
      const auto exact = exact_mean(kShapes, static_cast<std::uint64_t>(step), ctx.size);
      EXPECT_LE(relative_error(bucket.buffer, exact), kind.tolerance) << kind.spec;
      expect_replicas(*ctx.group, bucket.buffer);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    CodecsAndRanks, AverageOf,
    ::testing::Combine(::testing::Values(Kind{"none", 1e-6}, Kind{"cast(bf16)", 1e-2},
                                         Kind{"cast(fp16)", 1e-3},
                                         Kind{"quantize(bits=8, bucket=64)", 0.05},
                                         Kind{"quantize(bits=4, bucket=64)", 0.5},
                                         Kind{"ecsq(bits=4)", 0.4}, Kind{"ecsq(error=0.05)", 0.2},
                                         Kind{"ecsq(step=0.01)", 0.01},
                                         Kind{"spectral(bits=4)", 0.4},
                                         Kind{"quantize(bits=8, rounding=stochastic)", 0.1}),
                       ::testing::Values(1, 2, 3, 4)));

// ---- exact expectations ------------------------------------------------------------------------

at::Tensor round_trip(const Codec& codec, const at::Tensor& values) {
  at::Tensor input = values.to(at::kFloat).contiguous();
  at::Tensor output = at::empty_like(input);
  std::vector<std::byte> bytes(codec.max_compressed_bytes(input.numel(), DType::kFloat32));
  const auto size = codec.compress({input.const_data_ptr(), input.numel()}, {}, bytes);
  codec.decompress(std::span(bytes).first(size), {}, {output.mutable_data_ptr(), output.numel()},
                   WriteMode::kAssign);
  return output;
}

// With deterministic rounding the owner's slices fit together to D(C(mean of D(C(x)))) of the whole
// layer, however the layer was cut.
TEST(BucketAverager, ScatterReduceIsCodecOfMeanOfCodec) {
  constexpr int kWorld = 3;
  const LayerShapes shapes = {{"a", {64, 33}}, {"b", {5000}}};
  const CodecPtr codec = make_codec("quantize(bits=3, bucket=128)");
  at::Tensor sum;
  for (int r = 0; r < kWorld; ++r) {
    const Bucket bucket = random_bucket(shapes, 1, r);
    const auto decoded =
        at::cat({round_trip(*codec, layer_of(bucket, 0)), round_trip(*codec, layer_of(bucket, 1))});
    sum = r == 0 ? decoded : sum + decoded;
  }
  const at::Tensor mean = sum / static_cast<float>(kWorld);
  const at::Tensor expected = at::cat({round_trip(*codec, mean.narrow(0, 0, 64 * 33)),
                                       round_trip(*codec, mean.narrow(0, 64 * 33, 5000))});
  run_ranks(kWorld, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.chunk_bytes = 4096});
    Bucket bucket = random_bucket(shapes, 1, ctx.rank);
    averager.average(bucket, uniform_plan(shapes, "quantize(bits=3, bucket=128)"), 0);
    EXPECT_TRUE(at::equal(bucket.buffer, expected)) << "rank " << ctx.rank;
  });
}

TEST(BucketAverager, GatherReduceIsMeanOfCodec) {
  constexpr int kWorld = 3;
  const LayerShapes shapes = {{"a", {64, 33}}, {"b", {5000}}};
  const CodecPtr codec = make_codec("topk(density=0.1)");
  at::Tensor sum = at::zeros({64 * 33 + 5000});
  for (int r = 0; r < kWorld; ++r) {
    const Bucket bucket = random_bucket(shapes, 1, r);
    sum +=
        at::cat({round_trip(*codec, layer_of(bucket, 0)), round_trip(*codec, layer_of(bucket, 1))});
  }
  const at::Tensor expected = sum / static_cast<float>(kWorld);
  run_ranks(kWorld, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.strategy = Strategy::kGatherReduce});
    Bucket bucket = random_bucket(shapes, 1, ctx.rank);
    averager.average(bucket, uniform_plan(shapes, "topk(density=0.1)"), 0);
    EXPECT_TRUE(at::equal(bucket.buffer, expected)) << "rank " << ctx.rank;
    expect_replicas(*ctx.group, bucket.buffer);
  });
}

TEST(BucketAverager, LayersOfOneBucketKeepTheirOwnCodecs) {
  run_ranks(2, [](RankContext& ctx) {
    Plan plan;
    plan.set("conv", parse_layer_setting("quantize(bits=4)"));
    plan.set("fc", parse_layer_setting("topk(density=0.05, error_feedback=off)"));
    plan.set("wide", parse_layer_setting("cast(bf16)"));
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 5, ctx.rank);
    averager.average(bucket, plan, 0);
    const auto exact = exact_mean(kShapes, 5, 2);
    const auto layer_error = [&](std::size_t i) {
      const BucketLayer& layer = bucket.layers[i];
      return relative_error(layer_of(bucket, i), exact.narrow(0, layer.offset, layer.numel()));
    };
    EXPECT_LE(layer_error(1), 1e-6) << "bias is uncompressed";
    EXPECT_LE(layer_error(3), 1e-6) << "tiny is uncompressed";
    EXPECT_LE(layer_error(4), 1e-2) << "wide is bf16";
    EXPECT_GT(layer_error(4), 1e-5);
    EXPECT_GT(layer_error(2), 0.5) << "5 % of fc";
    EXPECT_LE((layer_of(bucket, 2) != 0).sum().item<std::int64_t>(), 2 * 360);
    expect_replicas(*ctx.group, bucket.buffer);
  });
}

TEST(BucketAverager, ConstantGradientsReduceExactly) {
  run_ranks(4, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = uniform_plan(kShapes, "quantize(bits=2)");
    Bucket bucket = random_bucket(kShapes, 0, 0);
    bucket.buffer.fill_(0.3f);
    averager.average(bucket, plan, 0);
    EXPECT_TRUE(at::equal(bucket.buffer, at::full_like(bucket.buffer, 0.3f)));
  });
}

// ---- other element types -----------------------------------------------------------------------

class AverageOfType : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(AverageOfType, KeepsTheType) {
  run_ranks(2, [type = GetParam()](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 3, ctx.rank, type);
    averager.average(bucket, uniform_plan(kShapes, "quantize(bits=8, bucket=64)"), 0);
    EXPECT_EQ(bucket.buffer.scalar_type(), type);
    EXPECT_LE(relative_error(bucket.buffer, exact_mean(kShapes, 3, 2)), 0.05);
    expect_replicas(*ctx.group, bucket.buffer);
  });
}

INSTANTIATE_TEST_SUITE_P(Types, AverageOfType,
                         ::testing::Values(at::kHalf, at::kBFloat16, at::kDouble));

// ---- error feedback ----------------------------------------------------------------------------

// What was applied plus what the ranks still hold is what they were given: nothing is lost.
TEST(BucketAverager, FeedbackTelescopes) {
  run_ranks(3, [](RankContext& ctx) {
    const LayerShapes shapes = {{"w", {40, 50}}};
    const Plan plan = uniform_plan(shapes, "topk(density=0.05)");
    BucketAverager averager(ctx.group);
    at::Tensor applied = at::zeros({2000}, at::kDouble);
    at::Tensor given = at::zeros({2000}, at::kDouble);
    for (int step = 0; step < 50; ++step) {
      Bucket bucket = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
      given += bucket.buffer;
      averager.average(bucket, plan, step);
      applied += bucket.buffer;
    }
    const auto held = averager.feedback().residual("w");
    at::Tensor residual = at::empty({2000});
    std::copy(held.begin(), held.end(), residual.mutable_data_ptr<float>());
    // An owner keeps what the mean lost, not its share of it.
    const AveragerState state = averager.state();
    for (const auto& range : state.second.at("w"))
      for (std::int64_t i = 0; i < range.numel(); ++i)
        residual[range.begin + i] += 3 * range.values[static_cast<std::size_t>(i)];
    std::vector<at::Tensor> sums = {given - residual.to(at::kDouble)};
    ctx.group->allreduce(sums)->wait();
    EXPECT_LE((applied - sums[0] / 3).abs().max().item<double>(), 1e-4);
    EXPECT_GT(residual.norm().item<double>(), 1.0) << "the test would prove nothing";
  });
}

TEST(BucketAverager, ResidualsDoNotGrow) {
  run_ranks(2, [](RankContext& ctx) {
    const LayerShapes shapes = {{"w", {20, 30}}};
    const Plan plan = uniform_plan(shapes, "quantize(bits=2)");
    BucketAverager averager(ctx.group);
    double early = 0, late = 0;
    for (int step = 0; step < 1000; ++step) {
      Bucket bucket = random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, plan, step);
      double norm = 0;
      for (const float value : averager.feedback().residual("w")) norm += double{value} * value;
      (step < 100 ? early : late) = std::max(step < 100 ? early : late, std::sqrt(norm));
    }
    EXPECT_LE(late, 2 * early);
  });
}

TEST(BucketAverager, NonFiniteGradientsReachAllRanksAndSpareTheResiduals) {
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const char* spec : {"quantize(bits=4)", "topk(density=0.1)", "cast(bf16)", "none"}) {
      run_ranks(3, [&](RankContext& ctx) {
        const LayerShapes shapes = {{"a", {40, 50}}, {"b", {3000}}};
        const Plan plan = uniform_plan(shapes, spec);
        BucketAverager averager(ctx.group);
        Bucket bucket = random_bucket(shapes, 0, ctx.rank);
        averager.average(bucket, plan, 0);
        const auto before = averager.feedback().state();

        bucket = random_bucket(shapes, 1, ctx.rank);
        if (ctx.rank == 1) bucket.buffer[77] = poison;
        averager.average(bucket, plan, 1);
        EXPECT_FALSE(at::isfinite(layer_of(bucket, 0)).all().item<bool>()) << spec;
        EXPECT_EQ(averager.feedback().state(), before) << spec;

        bucket = random_bucket(shapes, 2, ctx.rank);
        averager.average(bucket, plan, 2);
        EXPECT_TRUE(at::isfinite(bucket.buffer).all().item<bool>()) << spec;
      });
    }
  }
}

// ---- accounting --------------------------------------------------------------------------------

TEST(BucketAverager, CountsTheBytesOfTheWire) {
  run_ranks(4, [](RankContext& ctx) {
    const LayerShapes shapes = {{"w", {1024, 1024}}};
    BucketAverager averager(ctx.group, {.chunk_bytes = std::size_t{1} << 30});
    Bucket bucket = random_bucket(shapes, 0, ctx.rank);
    averager.average(bucket, uniform_plan(shapes, "quantize(bits=4, bucket=1024)"), 0);
    const Traffic use = averager.traffic();
    EXPECT_EQ(use.dense_bytes, 2u * 3 * (4u << 20) / 4);
    // In each of two chunks an eighth of the payload to each of three owners, the own eighth to
    // three ranks, and a header on each of the six frames.
    const std::uint64_t payload =
        make_codec("quantize(bits=4, bucket=1024)")->max_compressed_bytes(1 << 20, DType::kFloat32);
    // Two agreements: two numbers to three ranks on the layout, an all_reduce of one on the result.
    EXPECT_EQ(use.sent_bytes, 12 * (payload / 8 + 64) + 16 * 3 + 12);
    EXPECT_GE(static_cast<double>(use.dense_bytes) / static_cast<double>(use.sent_bytes), 7.7);
  });
}

TEST(BucketAverager, OneRankSendsNothing) {
  run_ranks(1, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 0, 0);
    averager.average(bucket, uniform_plan(kShapes, "quantize(bits=4)"), 0);
    EXPECT_EQ(averager.traffic().sent_bytes, 0u);
    EXPECT_EQ(averager.traffic().dense_bytes, 0u);
  });
}

}  // namespace
}  // namespace thinwire::comm
