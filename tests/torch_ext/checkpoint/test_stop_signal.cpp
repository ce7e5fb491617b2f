#include "thinwire/torch_ext/checkpoint/stop_signal.h"

#include <gtest/gtest.h>

#include <unistd.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <csignal>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

c10::intrusive_ptr<c10d::ProcessGroup> alone() {
  return comm::make_process_group("gloo", c10::make_intrusive<c10d::HashStore>(), 0, 1,
                                  {.hostname = "127.0.0.1"});
}

// What several ranks make of it is tests/examples/test_restart.py's.
TEST(StopSignal, CountsForTheStepThatBeginsAfterIt) {
  for (const int signal : {SIGUSR1, SIGTERM}) {
    StopSignal stop(alone());
    stop.begin_step();
    EXPECT_FALSE(stop.end_step());
    stop.begin_step();
    ASSERT_EQ(raise(signal), 0);
    EXPECT_FALSE(stop.end_step());
    stop.begin_step();
    EXPECT_TRUE(stop.end_step());
  }
}

TEST(StopSignal, GivesTheSignalsBack) {
  { const StopSignal stop(alone()); }
  EXPECT_EXIT(raise(SIGUSR1), ::testing::KilledBySignal(SIGUSR1), "");
}

TEST(StopSignal, OfARankThatCannotEndItsStepStillEndsIt) {
  EXPECT_EXIT(
      {
        StopSignal stop(alone());
        stop.begin_step();
        raise(SIGTERM);
        // Ten seconds were set; nobody waits for them here.
        _exit(alarm(0) == 0 ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(StopSignal, IsOneAtATime) {
  const StopSignal stop(alone());
  EXPECT_THROW(StopSignal{alone()}, InvalidArgument);
}

}  // namespace
}  // namespace thinwire
