// What happens when ranks disagree, bytes are damaged, or a rank is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <stdexcept>

#include "averager_fixture.h"
#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

const LayerShapes kShapes = {{"w", {100, 60}}, {"v", {3000}}};

TEST(ExchangeFailures, DifferentSpecsAreNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(3, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
    averager.average(
        bucket, uniform_plan(kShapes, ctx.rank == 2 ? "quantize(bits=8)" : "quantize(bits=4)"), 0);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("bits=4"), HasSubstr("bits=8"), HasSubstr("rank 2"),
                                 HasSubstr("w ["))));
  EXPECT_EQ(errors[0], errors[1]);
  EXPECT_EQ(errors[0], errors[2]);
}

TEST(ExchangeFailures, DifferentShapesAreNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    LayerShapes shapes = kShapes;
    if (ctx.rank == 1) shapes[1].second = {3001};
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(shapes, 0, ctx.rank);
    averager.average(bucket, uniform_plan(shapes, "none"), 0);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("[3000]"), HasSubstr("[3001]"))));
}

TEST(ExchangeFailures, DifferentTypesAreNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 0, ctx.rank, ctx.rank == 0 ? at::kHalf : at::kBFloat16);
    averager.average(bucket, uniform_plan(kShapes, "none"), 0);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("Half"), HasSubstr("BFloat16"))));
}

TEST(ExchangeFailures, BucketsThatCannotBeAreRefused) {
  run_ranks(1, [](RankContext& ctx) {
    BucketAverager averager(ctx.group);
    Bucket bucket = random_bucket(kShapes, 0, 0);
    bucket.layers[1].offset += 1;
    EXPECT_THROW(averager.average(bucket, Plan(), 0), InvalidArgument);
    bucket = random_bucket(kShapes, 0, 0);
    bucket.buffer = bucket.buffer.view({90, 100}).t();
    EXPECT_THROW(averager.average(bucket, Plan(), 0), InvalidArgument);
  });
}

TEST(ExchangeFailures, ARankThatIsGoneIsNamed) {
  testing::RankOptions options;
  options.timeout = std::chrono::seconds(5);
  std::atomic<int> gone = 0;
  const auto errors = errors_of<CommError>(
      3,
      [&](RankContext& ctx) {
        if (ctx.rank == 1) {
          ctx.group.reset();
          gone = 1;
          return;
        }
        while (gone == 0) std::this_thread::yield();
        BucketAverager averager(ctx.group);
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, "quantize(bits=4)"), 0);
      },
      options);
  const auto named = HasSubstr("rank(s) 1 of 3 are dead or hung");
  EXPECT_THAT(errors, ::testing::UnorderedElementsAre("no error", named, named));
}

// ---- failures of one rank alone ----------------------------------------------------------------

// A codec for which one rank has no memory.
class FailingCodec final : public Codec {
 public:
  FailingCodec(CodecPtr inner, bool fails) : inner_(std::move(inner)), fails_(fails) {}

  std::string spec() const override { return inner_->spec(); }
  CodecTraits traits() const override { return inner_->traits(); }
  CodecFacts facts() const override { return inner_->facts(); }
  std::int64_t block_size() const override { return inner_->block_size(); }
  std::size_t max_compressed_bytes(std::int64_t numel, DType dtype) const override {
    return inner_->max_compressed_bytes(numel, dtype);
  }
  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    if (fails_) throw std::bad_alloc();
    return inner_->compress(input, key, output);
  }
  void decompress(std::span<const std::byte> input, const RandomKey& key, TensorView output,
                  WriteMode mode) const override {
    inner_->decompress(input, key, output, mode);
  }

 private:
  const CodecPtr inner_;
  const bool fails_;
};

// Runs an average in which rank 1 fails. It has to do so long before the timeout of a minute, and
// rank 1 then leaves: the other groups' ends would wait for what it never sent.
template <typename Average>
void average_without_rank_1(RankContext& ctx, const Average& average) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    average();
  } catch (...) {
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(time.count(), 30);
    if (ctx.rank == 1) ctx.group.reset();
    throw;
  }
}

TEST(ExchangeFailures, OneThatOnlyOneRankHasIsNamedOnEveryRank) {
  for (const bool hierarchical : {false, true}) {
    const auto errors = errors_of<CommError>(4, [&](RankContext& ctx) {
      average_without_rank_1(ctx, [&] {
        AveragerOptions options{.host_of_rank = {0, 0, 1, 1}};
        if (hierarchical) options.strategy = Strategy::kHierarchical;
        LayerSetting setting = parse_layer_setting("quantize(bits=4)");
        setting.codec = std::make_shared<FailingCodec>(setting.codec, ctx.rank == 1);
        Plan plan;
        for (const auto& [name, shape] : kShapes) plan.set(name, setting);
        BucketAverager averager(ctx.group, options);
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, plan, 0);
      });
    });
    EXPECT_THAT(errors, Each(HasSubstr("rank 1 is at fault: rank 1 reports: std::bad_alloc")));
  }
}

// ---- damaged messages --------------------------------------------------------------------------

// What happens to what rank 1 receives in one of its collectives of a kind.
struct Damage {
  // kFrames: all_to_alls and all_gathers of bytes; kSizes: all_to_alls of numbers; kSums:
  // all_reduces of gradients.
  enum class Of { kFrames, kSizes, kSums } of = Of::kFrames;
  int call = -1;         // which of them, counted from 0; −1: none
  std::size_t byte = 0;  // this byte of what came is changed,
  int replay = -1;       // or all of it is what came in this earlier call
  int refuse = -1;       // this call is not even started
};

// A Gloo group that damages messages.
class DamagingBackend : public c10d::Backend {
 public:
  DamagingBackend(c10::intrusive_ptr<c10d::Backend> inner, Damage damage)
      : c10d::Backend(inner->getRank(), inner->getSize()),
        inner_(std::move(inner)),
        damage_(damage) {}

  const std::string getBackendName() const override { return "damaging"; }

  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override {
    return damaged(
        output.scalar_type() == at::kByte ? Damage::Of::kFrames : Damage::Of::kSizes, output,
        [&] { return inner_->alltoall_base(output, input, output_sizes, input_sizes, options); });
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    const auto start = [&] { return inner_->_allgather_base(output, input, options); };
    return output.scalar_type() == at::kByte ? damaged(Damage::Of::kFrames, output, start)
                                             : start();
  }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    const auto start = [&] { return inner_->allreduce(tensors, options); };
    return tensors[0].is_floating_point() ? damaged(Damage::Of::kSums, tensors[0], start) : start();
  }

 private:
  template <typename Start>
  c10::intrusive_ptr<c10d::Work> damaged(Damage::Of kind, at::Tensor& output, const Start& start) {
    if (kind != damage_.of) return start();
    const int call = calls_++;
    if (call == damage_.refuse) throw std::runtime_error("the cable is cut");
    auto work = start();
    if (call == damage_.replay) {
      work->wait();
      earlier_ = output.clone();
    }
    if (call == damage_.call && output.numel() > 0) {
      work->wait();
      if (damage_.replay >= 0) {
        output.copy_(earlier_);
      } else {
        auto* bytes = static_cast<std::uint8_t*>(output.mutable_data_ptr());
        bytes[damage_.byte % output.nbytes()] ^= 0x10;
      }
    }
    return work;
  }

  c10::intrusive_ptr<c10d::Backend> inner_;
  const Damage damage_;
  at::Tensor earlier_;
  int calls_ = 0;
};

c10::intrusive_ptr<c10d::ProcessGroup> damaging_group(const RankContext& ctx, Damage damage) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(
      c10::make_intrusive<c10d::PrefixStore>("damaging", ctx.store), ctx.rank, ctx.size);
  const auto inner = ctx.group->getBackend(c10::DeviceType::CPU);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM,
                    c10::make_intrusive<DamagingBackend>(inner, ctx.rank == 1 ? damage : Damage{}));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return group;
}

struct Way {
  const char* spec;
  const char* strategy;
  int legs;  // exchanges of frames of one average
  int world = 3;
  std::vector<int> hosts = {};

  AveragerOptions options() const {
    AveragerOptions options{.chunk_bytes = std::size_t{1} << 20, .host_of_rank = hosts};
    options.strategy = parse_strategy(strategy);
    return options;
  }
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.spec << " by " << way.strategy;
}

class DamagedMessage : public ::testing::TestWithParam<Way> {};

// Wherever the damage is, every rank raises the same error, which names who refused whose frame.
TEST_P(DamagedMessage, IsNamedOnEveryRankAndNeverDecoded) {
  const Way& way = GetParam();
  // A byte of each field of the header, of the payload's start, and somewhere in it; for all ways
  // but the first a few of them, since they check frames in one place.
  std::vector<std::size_t> bytes = {5, 33, 64, 700};
  if (std::string_view(way.strategy) == "scatter_reduce") {
    bytes = {0, 4, 6, 8, 9, 10, 12, 16, 20, 25, 33, 41, 50, 57, 61, 64, 700};
  }
  for (const std::size_t byte : bytes) {
    for (int leg = 0; leg < way.legs; ++leg) {
      const auto errors = errors_of<FrameError>(way.world, [&](RankContext& ctx) {
        BucketAverager averager(damaging_group(ctx, {.call = leg, .byte = byte}), way.options());
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, way.spec), 0);
      });
      EXPECT_THAT(errors, Each(AllOf(errors[0], HasSubstr("rank 1 reports"))))
          << "byte " << byte << " of leg " << leg;
    }
  }
}

// A frame of the step before has all its checksums right.
TEST_P(DamagedMessage, FramesOfAnotherStepAreRefused) {
  const Way& way = GetParam();
  for (int leg = 0; leg < way.legs; ++leg) {
    const auto errors = errors_of<FrameError>(way.world, [&](RankContext& ctx) {
      BucketAverager averager(damaging_group(ctx, {.call = way.legs + leg, .replay = leg}),
                              way.options());
      for (int step = 0; step < 2; ++step) {
        // The same gradients, so that the frames have the same sizes.
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, way.spec), step);
      }
    });
    EXPECT_THAT(errors, Each(AllOf(errors[0], HasSubstr("sequence"))));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ways, DamagedMessage,
    ::testing::Values(
        Way{"quantize(bits=4, error_feedback=off)", "scatter_reduce", 2},
        Way{"ecsq(bits=4, error_feedback=off)", "scatter_reduce", 2},
        Way{"topk(density=0.1, error_feedback=off)", "gather_reduce", 1},
        Way{"topk(density=0.1, error_feedback=off)", "sparse", 2},
        Way{"randomk(density=0.1, error_feedback=off)", "dense", 2},
        Way{"powersgd(rank=2, error_feedback=off)", "low_rank", 4},
        Way{"quantize(bits=4, error_feedback=off)", "hierarchical", 4, 4, {0, 0, 1, 1}},
        Way{"ternary(density=0.1, error_feedback=off)", "hierarchical", 3, 4, {0, 1, 0, 1}}));

// Ranks that disagree about the size of a frame would wait for each other.
TEST(ExchangeFailures, DamagedSizesAreNamedOnEveryRank) {
  for (const std::size_t byte : {0u, 1u, 2u, 3u, 7u}) {
    const auto errors = errors_of<FrameError>(3, [&](RankContext& ctx) {
      average_without_rank_1(ctx, [&] {
        BucketAverager averager(
            damaging_group(ctx, {.of = Damage::Of::kSizes, .call = 0, .byte = byte}),
            {.strategy = Strategy::kSparse});
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, "topk(density=0.1)"), 0);
      });
    });
    EXPECT_THAT(errors, Each(AllOf(errors[0], HasSubstr("the size that rank 0 announced to rank 1 "
                                                        "arrived damaged"))))
        << byte;
  }
}

// ---- replicas that differ ----------------------------------------------------------------------

// An all_reduce has no frames: only the comparison of the replicas sees what it does to one rank.
TEST(ExchangeFailures, ReplicasThatDifferAreAnErrorOnEveryRank) {
  for (const bool checks : {false, true}) {
    const auto errors = errors_of<InternalError>(3, [&](RankContext& ctx) {
      BucketAverager averager(
          damaging_group(ctx, {.of = Damage::Of::kSums, .call = 4, .byte = 1000}),
          {.check_replicas_every = checks ? 1 : 0});
      for (std::int64_t step = 0; step < 3; ++step) {
        for (std::size_t index = 0; index < 3; ++index) {
          Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
          bucket.index = index;
          BucketInFlight& in_flight = averager.begin(bucket, Plan(), step);
          averager.advance(in_flight);
          averager.finish(in_flight);
        }
        averager.agree();
      }
    });
    if (checks) {
      EXPECT_THAT(errors, Each(AllOf(HasSubstr("step 1, bucket 1"), HasSubstr("not bit-equal"))));
    } else {
      EXPECT_THAT(errors, Each("no error"));
    }
  }
}

TEST(ExchangeFailures, ACollectiveThatOneRankCannotStartIsNamedOnEveryRank) {
  for (const int call : {0, 1}) {
    const auto errors = errors_of<CommError>(3, [&](RankContext& ctx) {
      average_without_rank_1(ctx, [&] {
        BucketAverager averager(damaging_group(ctx, {.refuse = call}));
        Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
        averager.average(bucket, uniform_plan(kShapes, "quantize(bits=4)"), 0);
      });
    });
    EXPECT_THAT(errors, Each(HasSubstr("rank 1 was the first to fail: the cable is cut")));
  }
}

// A pipeline of many chunks goes on to its end, so that nobody waits for the rank that refused.
TEST(ExchangeFailures, DamageAmongManyChunksLeavesNobodyBehind) {
  for (const int call : {0, 1, 2, 5, 12, 17}) {
    const auto errors = errors_of<FrameError>(3, [&](RankContext& ctx) {
      BucketAverager averager(damaging_group(ctx, {.call = call, .byte = 70}),
                              {.chunk_bytes = 4000});
      Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
      averager.average(bucket, uniform_plan(kShapes, "quantize(bits=4, bucket=32)"), 0);
    });
    EXPECT_THAT(errors, Each(AllOf(errors[0], HasSubstr("rank 1 reports")))) << call;
  }
}

}  // namespace
}  // namespace thinwire::comm
