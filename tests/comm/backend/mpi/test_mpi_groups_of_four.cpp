// Two groups of two processes each.
#include <gmock/gmock.h>

#include "thinwire/comm/backend/split.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/comm/backend/mpi/mpi_groups.h"

namespace thinwire::comm {
namespace {

using testing::sum_over;
using MpiGroupsOfFour = testing::MpiGroups;

TEST_F(MpiGroupsOfFour, AFailureIsNamedInRanksOfTheGroup) {
  const auto pair = split(all("failure"), rank_ / 2);
  if (rank_ < 2) {
    EXPECT_EQ(sum_over(*pair, 1), 2);
  } else {
    std::string text = "no error";
    try {
      if (rank_ == 3)
        raise_collective_failure(*pair, "decoding", 3,
                                 std::make_exception_ptr(FrameError("damaged in transit")));
      sum_over(*pair, 1);
    } catch (const FrameError& error) {
      text = error.what();
    }
    EXPECT_EQ(text, "damaged in transit");
  }
  ranks_.gloo->barrier({})->wait();
}

}  // namespace
}  // namespace thinwire::comm
