#include "thinwire/comm/join/host_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

TEST(HostLayout, NumbersHostsInTheOrderOfTheirFirstRanks) {
  run_ranks(5, [](RankContext& ctx) {
    constexpr std::array kNames = {"blue", "red", "blue", "green", "red"};
    const auto hosts =
        hosts_of_ranks(*ctx.group, "named", kNames.at(static_cast<std::size_t>(ctx.rank)));
    EXPECT_THAT(hosts, ElementsAre(0, 1, 0, 2, 1));
    // Another key is another call, whatever was said under the first.
    EXPECT_THAT(hosts_of_ranks(*ctx.group, "again", "one"), Each(0));
  });
}

TEST(HostLayout, RanksOfOneMachineShareIt) {
  run_ranks(3, [](RankContext& ctx) {
    EXPECT_THAT(hosts_of_ranks(*ctx.group, "machine"), ElementsAre(0, 0, 0));
  });
}

TEST(HostLayout, NamesTheRankThatDoesNotCome) {
  run_ranks(3, [](RankContext& ctx) {
    ctx.group->getStore()->setTimeout(std::chrono::milliseconds(200));
    if (ctx.rank == 1) return;
    try {
      hosts_of_ranks(*ctx.group, "missing", "host");
      ADD_FAILURE() << "rank 1 did not come, and nobody noticed";
    } catch (const CommError& error) {
      EXPECT_EQ(error.rank(), 1) << error.what();
    }
  });
}

}  // namespace
}  // namespace thinwire::comm
