// ProcessGroupNCCL's own watchdog where a rank dies: it notices after the group's timeout, and the
// host that waits for the device is free only when the watchdog has aborted the communicators,
// which it does after it waited for a dump.
#include <gtest/gtest.h>

#include <cstdlib>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire {
namespace {

using testing::GpuRanks;

TEST(FakeWatchdog, FreesTheHostSomeTimeAfterTheTimeout) {
  // Clean up and stay alive; no dump, and not 15 s of waiting for one.
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 1);
  setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", 1);
  setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 1);
  setenv("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "50", 1);
  const GpuRanks& ranks = GpuRanks::get();
  const auto group = ranks.nccl_group("watchdog", std::chrono::milliseconds(300));
  std::vector<at::Tensor> tensor = {at::full({1000}, 1.0, at::device(ranks.device()))};
  group->allreduce(tensor)->wait();
  c10::cuda::device_synchronize();
  if (ranks.rank == 1) std::_Exit(EXIT_SUCCESS);

  const auto work = group->allreduce(tensor);
  work->wait();
  const auto begin = std::chrono::steady_clock::now();
  c10::cuda::device_synchronize();
  const auto waited = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(waited, std::chrono::milliseconds(250));
  EXPECT_LT(waited, std::chrono::seconds(20));
  // Nothing was thrown: whoever goes on has to ask.
  EXPECT_EQ(group->getBackend(at::kCUDA)->getError(), c10d::ErrorType::TIMEOUT);
}

}  // namespace
}  // namespace thinwire
