// The real LibTorch on the fake device: tensors, streams, events, pinned memory, the allocator, and
// kernels of our module.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const at::TensorOptions kOnDevice = at::TensorOptions().device(at::kCUDA);

void expect_equal(const at::Tensor& on_device, const at::Tensor& expected) {
  EXPECT_TRUE(on_device.is_cuda());
  EXPECT_TRUE(at::equal(on_device.cpu(), expected));
}

// Every schedule, by its name.
class FakeDevice : public testing::EverySchedule {
 protected:
  ~FakeDevice() override { EXPECT_THAT(fake_gpu::findings(), IsEmpty()); }
};
INSTANTIATE_TEST_SUITE_P(, FakeDevice, ::testing::ValuesIn(fake_gpu::kSchedules),
                         testing::name_of_schedule);

TEST_P(FakeDevice, OperatorsHaveTheBitsOfTheCpu) {
  const at::Tensor a = at::randn({37, 16}), b = at::randn({16, 5});
  const auto net = [](const at::Tensor& x, const at::Tensor& w) {
    at::Tensor y = at::relu(at::mm(x, w)) * 2 + 1;
    y.mul_(0.5).add_(y.select(0, 3).clone(), 0.25);
    at::Tensor out = at::empty({0}, y.options());
    at::sum_out(out, y, 0);
    return at::cat({out, at::softmax(y, 1).select(1, 2)}).to(at::kHalf);
  };
  expect_equal(net(a.cuda(), b.cuda()), net(a, b));
  expect_equal(at::arange(5, kOnDevice) == at::full({5}, 3, kOnDevice), at::arange(5) == 3);
  expect_equal(at::nonzero(a.cuda() > 1), at::nonzero(a > 1));
}

TEST_P(FakeDevice, BackwardHasTheBitsOfTheCpu) {
  const at::Tensor x = at::randn({6, 4}), w = at::randn({3, 4}), y = at::randn({6, 3});
  const auto gradient = [&](at::Device device) {
    const at::Tensor weight = w.to(device, w.scalar_type(), false, /*copy=*/true);
    weight.requires_grad_(true);
    at::mse_loss(at::tanh(at::linear(x.to(device), weight)), y.to(device)).backward();
    return weight.grad();
  };
  expect_equal(gradient(at::kCUDA), gradient(at::kCPU));
}

TEST_P(FakeDevice, StreamsAndEventsOrderWork) {
  const c10::Stream main = c10::cuda::getCurrentCUDAStream();
  const c10::Stream side = c10::cuda::getStreamFromPool();
  c10::Event ready(at::kCUDA), done(at::kCUDA);
  at::Tensor x = at::full({1000}, 2.0, kOnDevice), y = at::empty({1000}, kOnDevice);
  for (int i = 0; i < 5; ++i) {
    x.mul_(2);
    ready.record(main);
    ready.block(side);
    {
      const c10::StreamGuard guard(side);
      y.copy_(x).add_(1);
    }
    done.record(side);
    done.block(main);
    x.copy_(y);
  }
  expect_equal(x, at::full({1000}, 95.0));
  EXPECT_TRUE(done.query());
}

TEST_P(FakeDevice, PinnedMemoryIsCopiedInOrder) {
  at::Tensor pinned = at::empty({1000}, at::TensorOptions().pinned_memory(true));
  EXPECT_TRUE(pinned.is_pinned());
  const at::Tensor x = at::full({1000}, 3.0, kOnDevice);
  c10::Event done(at::kCUDA);
  {
    const fake_gpu::NoHostSync guard;
    pinned.copy_(x + 1, /*non_blocking=*/true);
    done.record(c10::cuda::getCurrentCUDAStream());
  }
  done.synchronize();
  EXPECT_TRUE(at::equal(pinned, at::full({1000}, 4.0)));
}

TEST_P(FakeDevice, DevicesCopyToEachOther) {
  const at::Tensor x = at::full({10}, 3.0, kOnDevice) + 1;
  const at::Tensor there = x.to(at::Device(at::kCUDA, 1)) * 2;
  EXPECT_EQ(there.device().index(), 1);
  expect_equal(there.to(x.device()), at::full({10}, 8.0));
}

TEST_P(FakeDevice, TheAllocatorReusesMemoryOfItsStream) {
  const void* first = at::full({300}, 1.0, kOnDevice).data_ptr();
  const at::Tensor again = at::full({300}, 2.0, kOnDevice);
  EXPECT_EQ(again.data_ptr(), first);
  const auto before = fake_gpu::counters();
  for (int i = 0; i < 10; ++i) (again + 1).mul_(2);
  EXPECT_EQ((fake_gpu::counters() - before).allocations, 0u);
}

// The module's kernels are found and executed without being registered anywhere.
TEST_P(FakeDevice, OurKernelsRunFromTheirPtx) {
  EXPECT_THAT(CudaModule::get().path(), HasSubstr("fake_gpu"));
  const at::Tensor x = at::randn({3000});
  const auto codec = make_codec("quantize(bits=3)");
  const auto payload_of = [&](const at::Tensor& values, const at::Tensor& reconstruction) {
    at::Tensor payload = at::empty(
        {static_cast<std::int64_t>(codec->max_compressed_bytes(x.numel(), DType::kFloat32))},
        values.options().dtype(at::kByte));
    codec->compress_and_reconstruct(as_const(comm::view_of(values)), {.seed = 1},
                                    {static_cast<std::byte*>(payload.data_ptr()), payload.nbytes()},
                                    comm::view_of(reconstruction));
    return payload;
  };
  const at::Tensor expected = at::empty_like(x), got = at::empty({3000}, kOnDevice);
  const at::Tensor expected_payload = payload_of(x, expected);
  const auto before = fake_gpu::counters();
  const at::Tensor payload = payload_of(x.cuda(), got);
  EXPECT_EQ((fake_gpu::counters() - before).launches, 1u);
  expect_equal(payload, expected_payload);
  expect_equal(got, expected);
}

TEST(FakeDeviceCounters, CountWhatASteadyStepDoes) {
  at::Tensor x = at::full({100}, 1.0, kOnDevice);
  const at::Tensor pinned = at::zeros({100}, at::TensorOptions().pinned_memory(true));
  const auto before = fake_gpu::counters();
  x.add_(x);
  x.copy_(pinned, /*non_blocking=*/true);
  x.cpu();
  const auto counted = fake_gpu::counters() - before;
  EXPECT_EQ(counted.operators, 1u);
  EXPECT_EQ(counted.to_device, 1u);
  EXPECT_EQ(counted.to_host, 1u);
  EXPECT_EQ(counted.host_syncs, 1u);
  EXPECT_EQ(counted.allocations, 0u);
}

}  // namespace
}  // namespace thinwire
