#include "thinwire/comm/backend/split.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using thinwire::testing::error_of;
using thinwire::testing::errors_of;
using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

std::int64_t sum_over(c10d::ProcessGroup& group, std::int64_t mine) {
  std::vector<at::Tensor> tensors = {at::full({1}, mine, at::kLong)};
  wait(group, group.allreduce(tensors), "the sum", 0);
  return tensors[0].item<std::int64_t>();
}

TEST(Split, GroupsRanksByColorAndOrdersThemByKey) {
  run_ranks(5, [](RankContext& ctx) {
    // 0, 2 and 4 in reverse order; 1 and 3.
    const auto group = split(ctx.group, ctx.rank % 2, -ctx.rank);
    ASSERT_NE(group, nullptr);
    EXPECT_EQ(group->getSize(), ctx.rank % 2 == 0 ? 3 : 2);
    EXPECT_EQ(group->getRank(), ctx.rank % 2 == 0 ? (4 - ctx.rank) / 2 : (3 - ctx.rank) / 2);
    EXPECT_EQ(sum_over(*group, ctx.rank), ctx.rank % 2 == 0 ? 6 : 4);
    EXPECT_EQ(backend_name(*group), "gloo");
    // Equal keys keep the order; a negative color takes no part.
    const auto first = split(ctx.group, ctx.rank < 2 ? 7 : -1);
    ASSERT_EQ(first != nullptr, ctx.rank < 2);
    if (first != nullptr) {
      EXPECT_EQ(first->getRank(), ctx.rank);
      EXPECT_EQ(sum_over(*first, 10), 20);
    }
    EXPECT_EQ(sum_over(*ctx.group, 1), 5);
  });
}

TEST(Split, MayBeDuplicatedAndSplitAgain) {
  run_ranks(4, [](RankContext& ctx) {
    const auto pair = split(duplicate(ctx.group, "copy"), ctx.rank / 2);
    const auto copy = duplicate(pair, "copy");
    EXPECT_EQ(sum_over(*copy, ctx.rank), ctx.rank < 2 ? 1 : 5);
    const auto alone = split(copy, ctx.rank);
    EXPECT_EQ(alone->getSize(), 1);
    EXPECT_EQ(sum_over(*alone, ctx.rank), ctx.rank);
    EXPECT_EQ(copy->getDefaultBackend()->getBackendOptions()->timeout,
              ctx.group->getDefaultBackend()->getBackendOptions()->timeout);
  });
}

TEST(Split, AFailureIsThatOfTheGroupAlone) {
  const auto errors = errors_of<InvalidArgument>(4, [](RankContext& ctx) {
    const auto pair = split(ctx.group, ctx.rank / 2);
    if (ctx.rank < 2) {
      EXPECT_EQ(sum_over(*pair, 1), 2);
      EXPECT_FALSE(another_rank_has_failed(*ctx.group));
      throw InvalidArgument("not asked");
    }
    agree_on_result(*pair, "key", "the file", [&]() -> std::string {
      if (ctx.rank == 3) throw FileError("it is cut off");
      return "good";
    });
  });
  EXPECT_THAT(errors,
              ::testing::UnorderedElementsAre("not asked", "not asked", "rank 1: it is cut off",
                                              "rank 1: it is cut off"));
}

TEST(Split, NamesTheRankThatDoesNotCome) {
  auto errors = errors_of<CommError>(3,
                                     [](RankContext& ctx) {
                                       if (ctx.rank == 1) return;
                                       split(ctx.group, 0);
                                     },
                                     {.timeout = std::chrono::milliseconds(500)});
  EXPECT_EQ(std::erase(errors, "no error"), 1u);
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("splitting a process group #0 failed, rank 1"),
                                 HasSubstr("rank(s) 1 of 3"))));
}

TEST(Split, OfAGroupWithoutStoreSaysSo) {
  const auto bare = c10::make_intrusive<c10d::ProcessGroup>(0, 1);
  EXPECT_THAT(error_of<InvalidArgument>([&] { split(bare, 0); }),
              HasSubstr("without a store cannot be split"));
}

}  // namespace
}  // namespace thinwire::comm
