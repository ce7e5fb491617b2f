// Uncompressed gradients: in range, and divided as c10d's Reducer divides them.
#include <gtest/gtest.h>

#include <limits>

#include "averager_fixture.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

const LayerShapes kShapes = {{"w", {40, 30}}, {"v", {900}}};

// Values whose sum the type cannot hold, though it holds their mean.
TEST(Uncompressed, LargeValuesOfNarrowTypesHaveAFiniteMean) {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    const double large = type == at::kHalf ? 60000.0 : 3e38;
    for (const char* spec : {"none", "quantize(bits=8)"}) {
      run_ranks(4, [&](RankContext& ctx) {
        BucketAverager averager(ctx.group);
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank, type);
        bucket.buffer.fill_(large);
        // A bucket with a compressed layer, too: the other is packed.
        Plan plan;
        plan.set("w", parse_layer_setting(type == at::kHalf ? spec : "none"));
        averager.average(bucket, plan, 0);
        const at::Tensor expected = at::full({1}, large, type);
        EXPECT_TRUE((bucket.buffer == expected).all().item<bool>()) << type << " " << spec;
      });
    }
  }
}

TEST(Uncompressed, EachRankMultipliesByOneOverTheRanks) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    run_ranks(3, [&](RankContext& ctx) {
      BucketAverager averager(ctx.group);
      Bucket bucket = random_bucket(kShapes, 0, ctx.rank, type);
      std::vector<at::Tensor> expected = {bucket.buffer * (1.0 / 3)};
      ctx.group->allreduce(expected)->wait();
      averager.average(bucket, Plan(), 0);
      std::vector<at::Tensor> again = {random_bucket(kShapes, 0, ctx.rank, type).buffer * (1.0 / 3)};
      ctx.group->allreduce(again)->wait();
      EXPECT_TRUE(at::equal(bucket.buffer, expected[0])) << type << " again " << at::equal(again[0], expected[0]) << (bucket.buffer != expected[0]).sum().item<int>();
    });
  }
}

}  // namespace
}  // namespace thinwire::comm
