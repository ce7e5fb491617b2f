#include "thinwire/comm/predict/scaled_link.h"

#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using thinwire::testing::error_of;

TEST(ScaledLink, RingsGrowWithTheRanksAndTreesWithTheirLogarithm) {
  const NetworkSpeed speed{.latency = 1e-4, .per_byte = 1e-8, .per_message = 1e-6};
  const BackendLink ring = scaled_link(speed, 1024, 1024, Route::kRing);
  EXPECT_DOUBLE_EQ(ring.of(Collective::kAllReduce).alpha, 2 * 1023 * 1e-4);
  EXPECT_DOUBLE_EQ(ring.of(Collective::kAllGather).alpha, 1023 * 1e-4);
  const BackendLink tree = scaled_link(speed, 1024, 1024, Route::kTree);
  EXPECT_DOUBLE_EQ(tree.of(Collective::kAllReduce).alpha, 2 * 10 * 1e-4);
  EXPECT_DOUBLE_EQ(tree.of(Collective::kAllReduce).beta, 1e-8);
  EXPECT_DOUBLE_EQ(tree.of(Collective::kAllToAll).alpha, 1e-4 + 1022 * 1e-6);
}

TEST(ScaledLink, RanksOfAHostShareItsLinkInAnAllToAll) {
  const BackendLink link = scaled_link({.per_byte = 1e-8}, 16, 2, Route::kRing);
  // Of each rank's 15 messages 8 leave the host, and 8 ranks send them.
  EXPECT_DOUBLE_EQ(link.of(Collective::kAllToAll).beta, 8.0 * 8 / 15 * 1e-8);
  EXPECT_DOUBLE_EQ(link.of(Collective::kAllReduce).beta, 1e-8);
}

TEST(ScaledLink, AMeasuredLinkGivesItsSpeedBack) {
  const NetworkSpeed speed{.latency = 2e-4, .per_byte = 3e-8};
  const NetworkSpeed found = speed_of(scaled_link(speed, 4, 4, Route::kRing), 4);
  EXPECT_DOUBLE_EQ(found.latency, 2e-4);
  EXPECT_DOUBLE_EQ(found.per_byte, 3e-8);
}

TEST(ScaledLink, RefusesHostsThatRanksDoNotFill) {
  EXPECT_NE(error_of([] { scaled_link({}, 5, 2, Route::kRing); }), "no error");
}

}  // namespace
}  // namespace thinwire::comm
