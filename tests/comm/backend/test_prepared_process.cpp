// In a program of its own: torch reads its variable once in the life of a process.
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

}  // namespace
}  // namespace thinwire::comm
