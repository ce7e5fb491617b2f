// A rank that dies, over the real ProcessGroupNCCL: the host of the other waits for a device that
// waits for ever, until somebody aborts the communicators. Rank 1 dies in each test, so there is
// one test a program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire {
namespace {

using testing::GpuRanks;

TEST(FakeAbort, TheDeviceIsFreeWhenTheCommunicatorsAreAborted) {
  const GpuRanks& ranks = GpuRanks::get();
  const auto group = ranks.nccl_group("abort");
  std::vector<at::Tensor> tensor = {at::full({1000}, 1.0, at::device(ranks.device()))};
  group->allreduce(tensor)->wait();
  EXPECT_EQ(tensor[0].sum().item<float>(), 1000.0f * static_cast<float>(ranks.size));
  if (ranks.rank == 1) std::_Exit(EXIT_SUCCESS);

  const auto work = group->allreduce(tensor);
  work->wait();  // orders the stream; the host goes on
  c10::Event done(at::kCUDA);
  done.record(c10::cuda::getCurrentCUDAStream());
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(done.query());
  EXPECT_FALSE(work->isCompleted());

  const auto begin = std::chrono::steady_clock::now();
  group->getBackend(at::kCUDA)->abort();
  done.synchronize();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

}  // namespace
}  // namespace thinwire
