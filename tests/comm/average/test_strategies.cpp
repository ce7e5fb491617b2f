// Which reduction is taken, by name or by a link model; hosts; momentum correction.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "averager_fixture.h"
#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/average/reduce/hierarchical.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using testing::expect_replicas;
using ::testing::HasSubstr;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using ::testing::ThrowsMessage;
using testing::uniform_plan;

const LayerShapes kShapes = {{"w", {4096}}};

at::Tensor exact_mean(int world) {
  at::Tensor sum = random_bucket(kShapes, 1, 0).buffer.to(at::kDouble);
  for (int r = 1; r < world; ++r) sum += random_bucket(kShapes, 1, r).buffer;
  return sum / world;
}

std::uint64_t sent_by(RankContext& ctx, const std::string& spec, const AveragerOptions& options) {
  BucketAverager averager(ctx.group, options);
  Bucket bucket = random_bucket(kShapes, 1, ctx.rank);
  averager.average(bucket, uniform_plan(kShapes, spec), 0);
  expect_replicas(*ctx.group, bucket.buffer);
  return averager.traffic().sent_bytes;
}

TEST(Strategies, OneThatCannotBeIsRefusedByName) {
  run_ranks(2, [](RankContext& ctx) {
    const auto attempt = [&](const char* spec, Strategy strategy) {
      return [&ctx, spec, strategy] { sent_by(ctx, spec, {.strategy = strategy}); };
    };
    EXPECT_THAT(attempt("topk(density=0.1)", Strategy::kScatterReduce),
                ThrowsMessage<InvalidArgument>(
                    AllOf(HasSubstr("scatter_reduce"), HasSubstr("topk"), HasSubstr("'w'"))));
    EXPECT_THAT(attempt("quantize(bits=4)", Strategy::kLowRank),
                ThrowsMessage<InvalidArgument>(HasSubstr("scatter_reduce")));
    EXPECT_THAT(attempt("quantize(bits=4)", Strategy::kHierarchical),
                ThrowsMessage<InvalidArgument>(HasSubstr("several hosts")));
  });
}

TEST(Strategies, RanksThatNameDifferentOnesAreTold) {
  run_ranks(2, [](RankContext& ctx) {
    EXPECT_THAT(
        [&] {
          sent_by(ctx, "topk(density=0.1)",
                  {.strategy = ctx.rank == 0 ? Strategy::kSparse : Strategy::kGatherReduce});
        },
        ThrowsMessage<InvalidArgument>(
            AllOf(HasSubstr("by sparse"), HasSubstr("by gather_reduce"))));
  });
}

// A network so fast that coding costs more than it saves, and a slow one.
TEST(Strategies, TheLinkModelMaySayNotToCompress) {
  run_ranks(2, [](RankContext& ctx) {
    LinkModel fast;
    fast.world = 2;
    fast.hosts = {"a", "a"};
    fast.backends["gloo"].collectives.fill({1e-6, 1e-12});
    LinkModel slow = fast;
    slow.backends["gloo"].collectives.fill({1e-6, 1e-6});
    EXPECT_GE(sent_by(ctx, "quantize(bits=4)", {.link = &fast}), 4096u * 4);
    EXPECT_LE(sent_by(ctx, "quantize(bits=4)", {.link = &slow}), 4096u * 4 / 6);
  });
}

// Which of the model's pairs are of one host is known where ranks are numbered host by host.
TEST(Strategies, TheLinkModelTakesHierarchicalWhereHostsAreBlocksOfRanks) {
  const AlphaBeta slow = {1e-4, 8e-8}, fast = {1e-6, 1e-11};
  LinkModel link;
  link.world = 4;
  link.hosts = {"a", "a", "b", "b"};
  BackendLink& gloo = link.backends["gloo"];
  gloo.collectives.fill(slow);
  gloo.pairs.assign(4, std::vector<AlphaBeta>(4, slow));
  gloo.pairs[0][1] = gloo.pairs[1][0] = gloo.pairs[2][3] = gloo.pairs[3][2] = fast;
  const LayerShapes shapes = {{"w", {1024, 1024}}};
  const Bucket bucket = random_bucket(shapes, 1, 0);
  const Plan plan = uniform_plan(shapes, "quantize(bits=4)");
  const auto chosen = [&](std::vector<int> hosts) {
    const AveragerOptions options{.host_of_rank = std::move(hosts), .link = &link};
    return std::string(name_of(choose_strategies(bucket, plan, 0, options, "gloo", 4)[0].strategy));
  };
  EXPECT_EQ(chosen({0, 0, 1, 1}), "hierarchical");
  EXPECT_EQ(chosen({1, 1, 0, 0}), "hierarchical");
  EXPECT_EQ(chosen({0, 1, 0, 1}), "scatter_reduce");
  EXPECT_EQ(chosen({0, 1, 1, 0}), "scatter_reduce");
}

// ---- hosts -------------------------------------------------------------------------------------

TEST(Hierarchical, EncodesTheSumOfTheHost) {
  const std::vector<int> hosts = {0, 1, 1, 0};
  const CodecPtr codec = make_codec("topk(density=0.25)");
  // Lanes {0, 1} and {2, 3} take half of the elements each; each host's half is coded once.
  at::Tensor expected = at::zeros({4096});
  for (const std::vector<int>& host : {std::vector<int>{0, 3}, std::vector<int>{1, 2}}) {
    const at::Tensor sum =
        random_bucket(kShapes, 1, host[0]).buffer + random_bucket(kShapes, 1, host[1]).buffer;
    for (const std::int64_t begin : {0, 2048}) {
      const at::Tensor half = sum.narrow(0, begin, 2048).contiguous();
      at::Tensor decoded = at::empty_like(half);
      std::vector<std::byte> bytes(codec->max_compressed_bytes(2048, DType::kFloat32));
      const auto size = codec->compress({half.const_data_ptr(), 2048}, {}, bytes);
      codec->decompress(std::span(bytes).first(size), {}, {decoded.mutable_data_ptr(), 2048},
                        WriteMode::kAssign);
      expected.narrow(0, begin, 2048) += decoded;
    }
  }
  expected /= 4;
  run_ranks(4, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group,
                            {.strategy = Strategy::kHierarchical, .host_of_rank = hosts});
    Bucket bucket = random_bucket(kShapes, 1, ctx.rank);
    averager.average(bucket, uniform_plan(kShapes, "topk(density=0.25)"), 0);
    EXPECT_LE((bucket.buffer - expected).abs().max().item<float>(), 1e-6);
  });
}

TEST(Hierarchical, IsNearTheMeanInManyChunks) {
  run_ranks(4, [](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.check_replicas_every = 1,
                                        .chunk_bytes = 2048,
                                        .strategy = Strategy::kHierarchical,
                                        .host_of_rank = {0, 0, 1, 1}});
    Bucket bucket = random_bucket(kShapes, 1, ctx.rank);
    averager.average(bucket, uniform_plan(kShapes, "quantize(bits=8, bucket=64)"), 0);
    const at::Tensor exact = exact_mean(4);
    EXPECT_LE(((bucket.buffer - exact).norm() / exact.norm()).item<double>(), 0.02);
  });
}

TEST(Hierarchical, HostsMustBeOfOneSize) {
  EXPECT_NO_THROW(check_hosts(std::vector<int>{5, 5, 2, 2}, 4));
  EXPECT_THAT(([] {
                check_hosts(std::vector<int>{0, 0, 0, 1}, 4);
              }),
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("has 3"), HasSubstr("has 1"))));
  EXPECT_THROW(check_hosts(std::vector<int>{0, 1}, 4), InvalidArgument);
}

// ---- the second residual -----------------------------------------------------------------------

// Equal gradients in every step: what the owners lose is a bias of every update unless they keep
// it, and then the mean of the updates tends to the mean of the gradients.
TEST(SecondResidual, TakesTheBiasOfTheOwnersAway) {
  run_ranks(4, [](RankContext& ctx) {
    const at::Tensor exact = exact_mean(4);
    const auto bias = [&](const char* spec) {
      BucketAverager averager(ctx.group);
      at::Tensor applied = at::zeros({4096}, at::kDouble);
      constexpr int kSteps = 200;
      for (int step = 0; step < kSteps; ++step) {
        Bucket bucket = random_bucket(kShapes, 1, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, spec), step);
        applied += bucket.buffer;
      }
      return ((applied / kSteps - exact).norm() / exact.norm()).item<double>();
    };
    EXPECT_LE(bias("quantize(bits=2, bucket=64)"), 0.03);
    EXPECT_GE(bias("quantize(bits=2, bucket=64, second_residual=off)"), 0.05);
  });
}

// ---- momentum correction -----------------------------------------------------------------------

TEST(MomentumInTheAverager, FollowsDgc) {
  run_ranks(2, [](RankContext& ctx) {
    const LayerShapes shapes = {{"w", {4}}};
    const Plan plan = uniform_plan(shapes, "topk(density=0.25, momentum=0.5)");
    BucketAverager averager(ctx.group);
    const auto step = [&](int number, std::vector<float> gradient) {
      Bucket bucket = random_bucket(shapes, 0, 0);
      bucket.buffer.copy_(at::tensor(gradient));
      averager.average(bucket, plan, number);
      return std::vector<float>(bucket.buffer.const_data_ptr<float>(),
                                bucket.buffer.const_data_ptr<float>() + 4);
    };
    // u = g, v = u: the 8 is sent and forgotten.
    EXPECT_EQ(step(0, {8, 4, 0, 0}), (std::vector<float>{8, 0, 0, 0}));
    // u = {1, 0.5·4 + 4, 0, 0}, v = {1, 4 + 6, 0, 0}.
    EXPECT_EQ(step(1, {1, 4, 0, 0}), (std::vector<float>{0, 10, 0, 0}));
    // u = {0.5, 0, 0, 0}, v = {1.5, 0, 0, 0}: where something was sent, nothing goes on.
    EXPECT_EQ(step(2, {0, 0, 0, 0}), (std::vector<float>{1.5, 0, 0, 0}));
  });
}

TEST(MomentumInTheAverager, TheRampSendsMoreAtFirst) {
  const LayerSetting setting = parse_layer_setting("topk(density=0.01, momentum=0.9, ramp=400)");
  const auto density = [&](std::int64_t step) { return setting.codec_at(step)->spec(); };
  EXPECT_THAT(density(0), HasSubstr("density=0.25,"));
  EXPECT_EQ(density(99), density(0));
  EXPECT_THAT(density(100), HasSubstr("density=0.111803"));
  EXPECT_THAT(density(200), HasSubstr("density=0.05"));
  EXPECT_THAT(density(399), HasSubstr("density=0.02236"));
  EXPECT_THAT(density(400), HasSubstr("density=0.01,"));
  EXPECT_THAT(setting.spec(), HasSubstr("momentum=0.9, ramp=400)"));
  // A positional density and the codec's default ramp too.
  EXPECT_THAT(parse_layer_setting("randomk(0.01, ramp=4)").codec_at(2)->spec(),
              HasSubstr("density=0.05"));
  EXPECT_THAT(parse_layer_setting("ternary(ramp=4)").codec_at(2)->spec(),
              HasSubstr("density=0.05"));

  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    std::vector<std::uint64_t> sent;
    for (int step = 0; step < 6; ++step) {
      const std::uint64_t before = averager.traffic().sent_bytes;
      Bucket bucket = random_bucket(kShapes, 1, ctx.rank);
      averager.average(bucket, uniform_plan(kShapes, "topk(density=0.01, ramp=4)"), step);
      sent.push_back(averager.traffic().sent_bytes - before);
    }
    for (int step = 0; step < 4; ++step) EXPECT_GT(sent[step], sent[step + 1]);
    EXPECT_NEAR(static_cast<double>(sent[5]), static_cast<double>(sent[4]), 16);
  });
}

TEST(MomentumInTheAverager, IsRefusedWhereItMeansNothing) {
  const auto parse = [](const char* spec) { return [spec] { parse_layer_setting(spec); }; };
  EXPECT_THAT(parse("quantize(bits=4, momentum=0.9)"),
              ThrowsMessage<InvalidArgument>(HasSubstr("topk, randomk, ternary")));
  EXPECT_THAT(parse("quantize(bits=4, ramp=10)"),
              ThrowsMessage<InvalidArgument>(HasSubstr("topk, randomk, ternary")));
  EXPECT_THROW(parse_layer_setting("topk(momentum=1)"), InvalidArgument);
  EXPECT_THROW(parse_layer_setting("topk(nesterov=on)"), InvalidArgument);
  EXPECT_THROW(parse_layer_setting("topk(momentum=0.9, residual_decay=0.5)"), InvalidArgument);
  EXPECT_THROW(parse_layer_setting("topk(momentum=0.9, error_feedback=off)"), InvalidArgument);
  run_ranks(4, [](RankContext& ctx) {
    EXPECT_THAT(
        [&] {
          sent_by(ctx, "topk(density=0.1, momentum=0.9)",
                  {.strategy = Strategy::kHierarchical, .host_of_rank = {0, 0, 1, 1}});
        },
        ThrowsMessage<InvalidArgument>(HasSubstr("momentum")));
  });
}

}  // namespace
}  // namespace thinwire::comm
