// In a program of its own: torch reads its variable once in the life of a process.
#include <cstdlib>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/process_group.h"

namespace thinwire::comm {
namespace {

// The program uses Gloo before thinwire could switch the record off.
TEST(FlightRecorder, ThatWasOnBeforeIsFoundAndTold) {
  ASSERT_EQ(setenv("TORCH_FR_BUFFER_SIZE", "100", 1), 0);
  const auto group = make_process_group("gloo", c10::make_intrusive<c10d::HashStore>(), 0, 1,
                                        {.hostname = "127.0.0.1"});
  std::vector<at::Tensor> tensors = {at::ones({3})};
  group->allreduce(tensors)->wait();
  // By the record itself, now that the variable says nothing.
  unsetenv("TORCH_FR_BUFFER_SIZE");
  EXPECT_TRUE(flight_recorder_is_on());
  ::testing::internal::CaptureStderr();
  duplicate(group, "one");
  duplicate(group, "two");
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, ::testing::HasSubstr("torch's flight recorder is on"));
  EXPECT_EQ(log.find("flight recorder"), log.rfind("flight recorder"));
}

}  // namespace
}  // namespace thinwire::comm
