// Several buckets on their way: the same bits, the same order of collectives on all ranks, and how
// many of them there are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <thread>

#include "thinwire/comm/average/layouts.h"
#include "thinwire/tests/comm/average/reduction_cases.h"
#include "thinwire/tests/support/counting_group.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::comm {
namespace {

using testing::CollectiveLog;
using testing::counting_group;
using testing::expect_replicas;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::ReductionCase;
using testing::run_ranks;
using testing::uniform_plan;

constexpr std::size_t kBuckets = 4;

// Those of the buckets differ in size.
LayerShapes shapes_of(std::size_t bucket) {
  const auto rows = static_cast<std::int64_t>(8 * (bucket + 1));
  const std::string number = std::to_string(bucket);
  return {{"w" + number, {rows, 3, 5}}, {"v" + number, {600}}, {"u" + number, {rows, 16}}};
}

Bucket bucket_of(std::size_t index, std::int64_t step, int rank) {
  Bucket bucket =
      random_bucket(shapes_of(index), 100 * static_cast<std::uint64_t>(step) + index, rank);
  bucket.index = index;
  return bucket;
}

Plan plan_of(const std::string& spec) {
  Plan plan;
  for (std::size_t index = 0; index < kBuckets; ++index) {
    for (const auto& [name, shape] : shapes_of(index)) {
      plan.set(name, parse_layer_setting(spec));
    }
  }
  return plan;
}

// Averages the buckets of a step with up to `most` in flight beside the one being begun, which rank
// r finishes as it likes.
std::vector<at::Tensor> average_step(BucketAverager& averager, const Plan& plan, std::int64_t step,
                                     int rank, std::size_t most) {
  std::vector<at::Tensor> buffers;
  std::deque<BucketInFlight*> in_flight;
  const auto finish_one = [&] {
    // The first on even ranks, the last on odd ones.
    BucketInFlight* chosen = rank % 2 == 0 ? in_flight.front() : in_flight.back();
    averager.finish(*chosen);
    std::erase(in_flight, chosen);
  };
  for (std::size_t index = 0; index < kBuckets; ++index) {
    Bucket bucket = bucket_of(index, step, rank);
    buffers.push_back(bucket.buffer);
    BucketInFlight& begun = averager.begin(std::move(bucket), plan, step);
    if (rank == 0 && in_flight.size() > most / 2) finish_one();
    averager.advance(begun);
    in_flight.push_back(&begun);
    while (in_flight.size() > most) finish_one();
  }
  while (!in_flight.empty()) finish_one();
  averager.agree();
  return buffers;
}

class InFlight : public ::testing::TestWithParam<ReductionCase> {};

TEST_P(InFlight, GivesTheBitsOfOneAfterAnother) {
  const ReductionCase& c = GetParam();
  const Plan plan = plan_of(c.spec);
  run_ranks(c.world, [&](RankContext& ctx) {
    BucketAverager alone(ctx.group, c.options()), many(ctx.group, c.options());
    for (std::int64_t step = 0; step < 3; ++step) {
      const auto buffers = average_step(many, plan, step, ctx.rank, 3);
      for (std::size_t index = 0; index < kBuckets; ++index) {
        Bucket bucket = bucket_of(index, step, ctx.rank);
        alone.average(bucket, plan, step);
        EXPECT_TRUE(at::equal(bucket.buffer, buffers[index])) << "bucket " << index;
      }
    }
    EXPECT_TRUE(alone.state() == many.state());
  });
}

INSTANTIATE_TEST_SUITE_P(CodecsAndStrategies, InFlight,
                         ::testing::ValuesIn(testing::all_reductions()));

struct Counted {
  CollectiveLog first, later;  // of the first step, and of each of those after the second
};

// Of rank 0, once all ranks proved to have posted the same kinds in the same order.
Counted count(const std::string& spec, int world, AveragerOptions options = {}) {
  std::vector<Counted> of_rank(static_cast<std::size_t>(world));
  run_ranks(world, [&](RankContext& ctx) {
    const auto log = std::make_shared<CollectiveLog>();
    BucketAverager averager(counting_group(ctx, log), options);
    Counted& counted = of_rank[static_cast<std::size_t>(ctx.rank)];
    const Plan plan = plan_of(spec);
    for (std::int64_t step = 0; step < 4; ++step) {
      log->clear();
      average_step(averager, plan, step, ctx.rank, ctx.rank == 0 ? 0 : 2);
      if (step == 0) counted.first = *log;
      if (step == 2) counted.later = *log;
      if (step == 3) {
        EXPECT_EQ(counted.later.size(), log->size());
      }
    }
  });
  const auto kinds = [](CollectiveLog log) {
    for (std::string& entry : log) entry.resize(entry.find(' '));
    return log;
  };
  for (const Counted& counted : of_rank) {
    EXPECT_EQ(kinds(counted.first), kinds(of_rank[0].first));
    EXPECT_EQ(kinds(counted.later), kinds(of_rank[0].later));
  }
  return of_rank[0];
}

std::ptrdiff_t calls(const CollectiveLog& log, const std::string& name) {
  return std::ranges::count_if(
      log, [&](const auto& entry) { return entry == name || entry.starts_with(name + " "); });
}

// c10d's Reducer makes one all_reduce a bucket.
TEST(Collectives, UncompressedOnesAreThoseOfC10d) {
  const Counted counted = count("none", 3);
  EXPECT_EQ(counted.later.size(), kBuckets) << ::testing::PrintToString(counted.later);
  EXPECT_EQ(calls(counted.later, "all_reduce"), kBuckets);
  EXPECT_EQ(calls(counted.first, "all_gather"), kBuckets) << "what the ranks bring is compared";
}

TEST(Collectives, OneSmallAgreementAStep) {
  const Counted counted = count("quantize(bits=4)", 3);
  EXPECT_EQ(calls(counted.later, "all_to_all"), 2 * kBuckets);
  EXPECT_EQ(calls(counted.later, "all_reduce 8"), 1);
  EXPECT_EQ(counted.later.size(), 2 * kBuckets + 1) << ::testing::PrintToString(counted.later);
  EXPECT_EQ(counted.later.back(), "all_reduce 8");
}

// So that the network has something to do while the sums are made.
TEST(Collectives, AllChunksAreSentBeforeAnyIsWaitedFor) {
  const LayerShapes shapes = {{"w", {128, 128}}};
  constexpr std::ptrdiff_t kChunks = 4;
  for (const char* spec : {"quantize(bits=4)", "cast(bf16)", "ecsq(bits=2)", "spectral(bits=2)",
                           "ecsq(bits=2, error_feedback=off)"}) {
    run_ranks(2, [&](RankContext& ctx) {
      const auto log = std::make_shared<CollectiveLog>();
      BucketAverager averager(counting_group(ctx, log), {.chunk_bytes = std::size_t{1} << 14});
      for (std::int64_t step = 0; step < 3; ++step) {
        log->clear();
        BucketInFlight& begun =
            averager.begin(random_bucket(shapes, static_cast<std::uint64_t>(step), ctx.rank),
                           uniform_plan(shapes, spec), step);
        EXPECT_EQ(calls(*log, "all_to_all"), kChunks) << spec;
        averager.advance(begun);
        EXPECT_EQ(calls(*log, "all_to_all"), 2 * kChunks) << spec;
        averager.finish(begun);
        averager.agree();
      }
    });
  }
}

// Notes what a bucket holds when its first slices are sent.
class LookingBackend : public testing::CountingBackend {
 public:
  static inline thread_local at::Tensor watched, seen;

  using CountingBackend::CountingBackend;
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override {
    if (watched.defined() && !seen.defined()) seen = watched.clone();
    return CountingBackend::alltoall_base(output, input, output_sizes, input_sizes, options);
  }
};

// Encoding leaves the loss where the gradient was, which shows what has been encoded.
TEST(Collectives, TheOwnSliceIsEncodedWhileTheOthersTravel) {
  const LayerShapes shapes = {{"w", {128, 128}}};
  constexpr std::int64_t kSlice = 128 * 128 / 4 / 2;  // in each of four chunks
  run_ranks(2, [&](RankContext& ctx) {
    BucketAverager averager(testing::counting_group<LookingBackend>(ctx),
                            {.chunk_bytes = std::size_t{1} << 14});
    Bucket bucket = random_bucket(shapes, 5, ctx.rank);
    const at::Tensor gradient = bucket.buffer.clone();
    LookingBackend::watched = bucket.buffer;
    averager.average(bucket, uniform_plan(shapes, "quantize(bits=4)"), 0);
    const auto untouched = [&](int owner) {
      return at::equal(LookingBackend::seen.narrow(0, owner * kSlice, kSlice),
                       gradient.narrow(0, owner * kSlice, kSlice));
    };
    EXPECT_TRUE(untouched(ctx.rank));
    EXPECT_FALSE(untouched(1 - ctx.rank));
    LookingBackend::watched = LookingBackend::seen = at::Tensor();
  });
}

// A size of 8 bytes and a frame, to all.
TEST(Collectives, GatheringSendsOneFrameToAll) {
  const Counted counted = count("topk(density=0.05)", 3, {.strategy = Strategy::kGatherReduce});
  EXPECT_EQ(calls(counted.later, "all_gather"), 2 * kBuckets);
  EXPECT_EQ(calls(counted.later, "all_gather 8"), kBuckets);
  EXPECT_EQ(counted.later.size(), 2 * kBuckets + 1) << ::testing::PrintToString(counted.later);
}

// No table of W × W sizes: a number to each owner, and one to all.
TEST(Collectives, SparseTellsEachOwnerItsSize) {
  const Counted counted = count("topk(density=0.3)", 3, {.strategy = Strategy::kSparse});
  EXPECT_EQ(calls(counted.later, "all_to_all 24"), kBuckets);
  EXPECT_EQ(calls(counted.later, "all_gather 8"), kBuckets);
  EXPECT_EQ(counted.later.size(), 4 * kBuckets + 1) << ::testing::PrintToString(counted.later);
}

// A rank whose buckets come in another order than they did makes other collectives than the rest:
// an error, not a mean of different layers.
TEST(Collectives, AnotherOrderOnOneRankIsAnError) {
  testing::RankOptions options;
  options.timeout = std::chrono::seconds(3);
  const auto errors = testing::errors_of<Error>(
      2,
      [&](RankContext& ctx) {
        BucketAverager averager(ctx.group);
        const Plan none;
        // Equal sizes, so that no backend could tell.
        const auto bring = [&](std::size_t index, std::int64_t step) {
          Bucket bucket = random_bucket({{"w" + std::to_string(index), {500}}}, index, ctx.rank);
          bucket.index = index;
          averager.average(bucket, none, step);
        };
        for (std::int64_t step = 0; step < 3; ++step) {
          for (std::size_t index = 0; index < 3; ++index) bring(index, step);
        }
        bring(0, 3);
        bring(ctx.rank == 1 ? 2 : 1, 3);
        bring(ctx.rank == 1 ? 1 : 2, 3);
      },
      options);
  EXPECT_THAT(errors, ::testing::Each(::testing::HasSubstr("in different operations")));
}

// ---- layouts -----------------------------------------------------------------------------------

// c10d's Reducer rebuilds its buckets after the first step: what belonged to the old ones goes.
TEST(Layouts, OfBucketsThatComeNoMoreAreDropped) {
  run_ranks(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    const Plan plan = plan_of("quantize(bits=4)");
    std::size_t one_step = 0;
    for (std::int64_t step = 0; step < 60; ++step) {
      for (std::size_t index = 0; index < kBuckets; ++index) {
        // Under other numbers in each step.
        Bucket bucket = bucket_of(index, step, ctx.rank);
        bucket.index += kBuckets * static_cast<std::size_t>(step);
        averager.average(bucket, plan, step);
      }
      if (step == 0) one_step = averager.memory().layouts;
    }
    EXPECT_LE(averager.memory().layouts, (Layouts::kRecent / kBuckets + 4) * one_step);
  });
}

}  // namespace
}  // namespace thinwire::comm
