// In a program of its own: torch reads its variable once in the life of a process.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/process_group.h"

namespace thinwire::comm {
namespace {

TEST(PreparedProcess, RecordsNoOperation) {
  prepare_process();
  EXPECT_STREQ(std::getenv("TORCH_FR_BUFFER_SIZE"), "0");
  const auto group = make_process_group("gloo", c10::make_intrusive<c10d::HashStore>(), 0, 1,
                                        {.hostname = "127.0.0.1"});
  std::vector<at::Tensor> tensors = {at::ones({3})};
  group->allreduce(tensors)->wait();
  EXPECT_FALSE(flight_recorder_is_on());
}

TEST(PreparedProcess, AWriteToAPeerThatHasGoneIsAnErrorAndNotTheEnd) {
  prepare_process();
  std::array<int, 2> ends = {};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  close(ends[1]);
  errno = 0;
  EXPECT_EQ(write(ends[0], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  close(ends[0]);
}

TEST(PreparedProcessDeathTest, AHandlerOfTheProgramStays) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // prepares a process that nothing has prepared
  EXPECT_EXIT(
      {
        std::signal(SIGPIPE, [](int) { _exit(7); });
        prepare_process();
        std::raise(SIGPIPE);
      },
      ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace thinwire::comm
