// The real LibTorch on the fake device: tensors, streams, events, pinned memory, the allocator.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"

namespace thinwire {
namespace {

const at::TensorOptions kOnDevice = at::TensorOptions().device(at::kCUDA);

TEST(FakeDevice, OperatorsHaveTheBitsOfTheCpu) {
  for (const auto schedule : fake_gpu::kSchedules) {
    fake_gpu::set_schedule(schedule);
    const at::Tensor a = at::randn({37, 16}), b = at::randn({16, 5});
    const auto net = [](const at::Tensor& x, const at::Tensor& w) {
      at::Tensor y = at::relu(at::mm(x, w)) * 2 + 1;
      y.mul_(0.5);
      return at::cat({y.sum(0), at::softmax(y, 1).select(1, 2)}).to(at::kHalf);
    };
    const at::Tensor expected = net(a, b);
    const at::Tensor got = net(a.cuda(), b.cuda());
    EXPECT_TRUE(got.is_cuda());
    EXPECT_TRUE(at::equal(got.cpu(), expected)) << fake_gpu::name_of(schedule);
    EXPECT_EQ(fake_gpu::findings(), std::vector<std::string>());
  }
}

}  // namespace
}  // namespace thinwire
