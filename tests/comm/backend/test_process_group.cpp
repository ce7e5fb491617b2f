#include "thinwire/comm/backend/process_group.h"

#include <atomic>
#include <set>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using thinwire::testing::error_of;
using thinwire::testing::RankContext;
using thinwire::testing::RankOptions;
using thinwire::testing::run_ranks;

at::Tensor all_sum(c10d::ProcessGroup& group, const at::Tensor& mine) {
  std::vector<at::Tensor> tensors = {mine.clone()};
  group.allreduce(tensors)->wait();
  return tensors[0];
}

class Gloo : public ::testing::TestWithParam<int> {};

TEST_P(Gloo, ReducesAndExchangesBetweenThreads) {
  const int size = GetParam();
  run_ranks(size, [](RankContext& ctx) {
    const auto sum = all_sum(*ctx.group, at::full({5}, ctx.rank + 1, at::kFloat));
    EXPECT_TRUE(at::equal(sum, at::full({5}, ctx.size * (ctx.size + 1) / 2, at::kFloat)));

    at::Tensor out = at::empty({ctx.size}, at::kLong);
    at::Tensor in = at::arange(ctx.size, at::kLong) + 100 * ctx.rank;
    std::vector<std::int64_t> splits;
    ctx.group->alltoall_base(out, in, splits, splits)->wait();
    EXPECT_TRUE(at::equal(out, at::arange(ctx.size, at::kLong) * 100 + ctx.rank));
    EXPECT_EQ(backend_name(*ctx.group), "gloo");
    EXPECT_EQ(ctx.group->getBackendName(), "gloo");
    EXPECT_NE(ctx.group->getStore(), nullptr);
  });
}
INSTANTIATE_TEST_SUITE_P(Ranks, Gloo, ::testing::Values(1, 2, 3, 4));

TEST(Duplicate, KeepsTimeoutAndNeverMixesWithTheOriginal) {
  run_ranks(2,
            [](RankContext& ctx) {
              const auto copy = duplicate(ctx.group, "copy");
              const auto second = duplicate(copy, "copy");
              EXPECT_EQ(copy->getRank(), ctx.rank);
              EXPECT_EQ(copy->getSize(), ctx.size);
              EXPECT_EQ(backend_name(*copy), "gloo");
              EXPECT_EQ(copy->getDefaultBackend()->getBackendOptions()->timeout,
                        std::chrono::milliseconds(7654));
              // Started in opposite order on the two ranks: on one group they would be matched
              // wrongly.
              at::Tensor a = at::full({1000}, 1.0F), b = at::full({1000}, 10.0F),
                         c = at::full({3}, 2.0F);
              std::vector<at::Tensor> as = {a}, bs = {b}, cs = {c};
              c10::intrusive_ptr<c10d::Work> first, other;
              if (ctx.rank == 0) {
                first = ctx.group->allreduce(as);
                other = copy->allreduce(bs);
              } else {
                other = copy->allreduce(bs);
                first = ctx.group->allreduce(as);
              }
              const auto third = second->allreduce(cs);
              first->wait();
              other->wait();
              third->wait();
              EXPECT_TRUE(at::equal(a, at::full({1000}, 2.0F)));
              EXPECT_TRUE(at::equal(b, at::full({1000}, 20.0F)));
              EXPECT_TRUE(at::equal(c, at::full({3}, 4.0F)));
            },
            {.timeout = std::chrono::milliseconds(7654)});
}

TEST(Duplicate, OfAGroupWithoutStoreSaysSo) {
  const auto bare = c10::make_intrusive<c10d::ProcessGroup>(0, 1);
  EXPECT_THAT(error_of<InvalidArgument>([&] { duplicate(bare, "x"); }),
              HasSubstr("without a store cannot be duplicated"));
}

TEST(Duplicate, UsedTwiceUnderOneNameIsRefused) {
  run_ranks(1, [](RankContext& ctx) {
    duplicate(ctx.group, "x");
    EXPECT_THAT(error_of<InvalidArgument>([&] { duplicate(ctx.group, "x"); }),
                HasSubstr("is that of another process group"));
  });
}

struct BadArgument {
  std::string backend;
  int rank, size;
  std::string message;
};
class BadArguments : public ::testing::TestWithParam<BadArgument> {};

TEST_P(BadArguments, AreNamed) {
  const BadArgument& bad = GetParam();
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<InvalidArgument>(
                  [&] { make_process_group(bad.backend, store, bad.rank, bad.size); }),
              HasSubstr(bad.message));
}
INSTANTIATE_TEST_SUITE_P(
    Group, BadArguments,
    ::testing::Values(BadArgument{"glo", 0, 1,
                                  "unknown backend 'glo', known are nccl, mpi and "
                                  "gloo; did you mean gloo?"},
                      BadArgument{"", 0, 1, "unknown backend ''"},
                      BadArgument{"gloo", 2, 2, "rank must be in [0, 2), got 2"},
                      BadArgument{"gloo", -1, 2, "rank must be in [0, 2), got -1"},
                      BadArgument{"gloo", 0, 0, "at least one rank, got size 0"}));

TEST(Group, NeedsAStoreAndAPositiveTimeout) {
  EXPECT_THAT(error_of<InvalidArgument>([] { make_process_group("gloo", nullptr, 0, 1); }),
              HasSubstr("needs a store"));
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<InvalidArgument>([&] {
                make_process_group("gloo", store, 0, 1, {.timeout = std::chrono::seconds(0)});
              }),
              HasSubstr("timeout must be positive, got 0 ms"));
}

TEST(Group, UnknownInterfaceIsNamed) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<InvalidArgument>(
                  [&] { make_process_group("gloo", store, 0, 1, {.interface = "nosuchif0"}); }),
              HasSubstr("interface 'nosuchif0'"));
}

TEST(Group, UnknownInterfaceOfOneRankIsToldToAllBeforeTheyConnect) {
  std::atomic<int> told = 0;
  run_ranks(2,
            [&](RankContext& ctx) {
              const std::string message = error_of<InvalidArgument>([&] {
                make_process_group(
                    "gloo", ctx.store, ctx.rank, 2,
                    {.hostname = "127.0.0.1", .interface = ctx.rank == 1 ? "nosuchif0" : ""});
              });
              EXPECT_THAT(message, HasSubstr("interface 'nosuchif0'"));
              ++told;
            },
            {.make_group = false});
  EXPECT_EQ(told, 2);
}

TEST(Group, AnAbsentRankIsNamedWithinTheTimeout) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<CommError>([&] {
                make_process_group("gloo", store, 1, 3,
                                   {.timeout = std::chrono::milliseconds(100)});
              }),
              HasSubstr("rank(s) 0, 2 of 3 did not come within 0.1 s"));
}

TEST(Group, DifferentSizesAreAnErrorOnEveryRank) {
  std::atomic<int> told = 0;
  run_ranks(2,
            [&](RankContext& ctx) {
              const int claimed = ctx.rank == 0 ? 3 : 2;
              const std::string message = error_of<InvalidArgument>(
                  [&] { make_process_group("gloo", ctx.store, ctx.rank, claimed); });
              EXPECT_THAT(message, AllOf(HasSubstr("2 rank(s)"), HasSubstr("3 rank(s)")));
              ++told;
            },
            {.make_group = false});
  EXPECT_EQ(told, 2);
}

TEST(Group, TwoProcessesWithOneRankAreRefused) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  make_process_group("gloo", store, 0, 1, {.hostname = "127.0.0.1"});
  EXPECT_THAT(error_of<InvalidArgument>([&] { make_process_group("gloo", store, 0, 1); }),
              HasSubstr("two processes claim rank 0 of 1"));
}

TEST(Group, ARankThatCannotTellsTheOthers) {
  run_ranks(2,
            [&](RankContext& ctx) {
              // Not under mpirun, so "mpi" refuses rank 1 of 2; rank 0 learns of it while it waits.
              const std::string backend = ctx.rank == 0 ? "gloo" : "mpi";
              const std::string message = error_of<InvalidArgument>(
                  [&] { make_process_group(backend, ctx.store, ctx.rank, 2); });
              EXPECT_THAT(message, HasSubstr("MPI"));
              if (ctx.rank == 0) {
                EXPECT_THAT(message, HasSubstr("rank 1 cannot join"));
              }
            },
            {.make_group = false});
}

// On hosts that have no GPU.
class WithoutGpu : public ::testing::TestWithParam<const char*> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WithoutGpu);
INSTANTIATE_TEST_SUITE_P(Host, WithoutGpu,
                         ::testing::ValuesIn(nccl_backend_usable()
                                                 ? std::vector<const char*>{}
                                                 : std::vector<const char*>{"nccl"}));

TEST_P(WithoutGpu, NcclSaysWhatIsMissing) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(error_of<InvalidArgument>([&] { make_process_group(GetParam(), store, 0, 1); }),
              AllOf(::testing::AnyOf(HasSubstr("nccl needs a GPU and this host has none"),
                                     HasSubstr("this build of thinwire has no NCCL")),
                    HasSubstr("gloo")));
}

TEST(AvailableBackends, EndWithGloo) {
  const auto names = available_backends();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "gloo");
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
}

TEST(RunRanks, RethrowsTheFirstError) {
  EXPECT_THROW(run_ranks(3,
                         [](RankContext& ctx) {
                           if (ctx.rank == 2) throw FrameError("damaged");
                         }),
               FrameError);
}

}  // namespace
}  // namespace thinwire::comm
