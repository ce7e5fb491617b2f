// What happens when ranks disagree, bytes are damaged, or a rank is gone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "averager_fixture.h"
#include "thinwire/comm/reductions/bucket_averager.h"
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
  int named = 0;
  for (const std::string& error : errors) named += error.find("rank 1") != std::string::npos;
  EXPECT_EQ(named, 2) << errors[0] << "\n" << errors[1] << "\n" << errors[2];
}

// ---- damaged messages --------------------------------------------------------------------------

// A Gloo group whose all_to_all changes one received byte on one rank.
class DamagingBackend : public c10d::Backend {
 public:
  DamagingBackend(c10::intrusive_ptr<c10d::Backend> inner, int call, std::size_t byte)
      : c10d::Backend(inner->getRank(), inner->getSize()),
        inner_(std::move(inner)),
        call_(call),
        byte_(byte) {}

  const std::string getBackendName() const override { return "damaging"; }

  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override {
    auto work = inner_->alltoall_base(output, input, output_sizes, input_sizes, options);
    if (calls_++ == call_) {
      work->wait();
      auto* bytes = static_cast<std::uint8_t*>(output.mutable_data_ptr());
      bytes[byte_ % static_cast<std::size_t>(output.numel())] ^= 0x10;
    }
    return work;
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    return inner_->_allgather_base(output, input, options);
  }

 private:
  c10::intrusive_ptr<c10d::Backend> inner_;
  int call_;
  std::size_t byte_;
  int calls_ = 0;
};

c10::intrusive_ptr<c10d::ProcessGroup> damaging_group(const RankContext& ctx, int call,
                                                      std::size_t byte) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(
      c10::make_intrusive<c10d::PrefixStore>("damaging", ctx.store), ctx.rank, ctx.size);
  const auto inner = ctx.group->getBackend(c10::DeviceType::CPU);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM,
                    c10::make_intrusive<DamagingBackend>(inner, ctx.rank == 1 ? call : -1, byte));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return group;
}

struct Damage {
  const char* spec;
  int call;  // which all_to_all: scatter_reduce scatters in the first, gathers in the second
};

class DamagedMessage : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedMessage, IsNeverDecoded) {
  const Damage damage = GetParam();
  // Bytes of the header, of the payload's start, and somewhere in it.
  for (const std::size_t byte : {0u, 5u, 9u, 17u, 33u, 50u, 63u, 64u, 700u}) {
    std::atomic<int> refused = 0;
    run_ranks(3, [&](RankContext& ctx) {
      BucketAverager averager(damaging_group(ctx, damage.call, byte));
      Bucket bucket = random_bucket(kShapes, 0, ctx.rank);
      try {
        averager.average(bucket, uniform_plan(kShapes, damage.spec), 0);
      } catch (const FrameError&) {
        ++refused;
      }
    });
    // Damage to the first leg is told to all in the second. Damage to the last message is known to
    // its receiver alone until the ranks meet again.
    const bool first_of_two = std::string(damage.spec).starts_with("quantize") && damage.call == 0;
    EXPECT_EQ(refused, first_of_two ? 3 : 1) << damage.spec << ", byte " << byte;
  }
}

INSTANTIATE_TEST_SUITE_P(Legs, DamagedMessage,
                         ::testing::Values(Damage{"quantize(bits=4)", 0},
                                           Damage{"quantize(bits=4)", 1},
                                           Damage{"topk(density=0.1)", 0}));

}  // namespace
}  // namespace thinwire::comm
