// Uncompressed gradients: in range, and divided as c10d's Reducer divides them.
#include <gtest/gtest.h>

#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/reducer.hpp>

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

// What c10d's Reducer makes of these gradients without a hook, in one bucket.
at::Tensor by_reducer(const RankContext& ctx, const at::Tensor& gradient) {
  at::Tensor parameter = at::zeros_like(gradient).requires_grad_();
  c10d::Reducer reducer({parameter}, {{0}}, ctx.group, {false}, std::int64_t{1} << 25,
                        /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false, {},
                        std::int64_t{1} << 25, /*skip_all_reduce_unused_params=*/false,
                        /*use_python_reducer=*/false, /*bucket_bytes_cap_list=*/{});
  reducer.prepare_for_forward();
  const at::Tensor loss = (parameter * gradient).sum();
  reducer.prepare_for_backward({});
  loss.backward();
  return parameter.grad();
}

TEST(Uncompressed, BitsAreThoseOfC10dsReducer) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    run_ranks(3, [&](RankContext& ctx) {
      BucketAverager averager(ctx.group);
      Bucket bucket = random_bucket(kShapes, 0, ctx.rank, type);
      const at::Tensor expected = by_reducer(ctx, bucket.buffer.clone());
      averager.average(bucket, Plan(), 0);
      EXPECT_TRUE(at::equal(bucket.buffer, expected))
          << type << ": " << (bucket.buffer != expected).sum().item<std::int64_t>() << " differ";
    });
  }
}

}  // namespace
}  // namespace thinwire::comm
