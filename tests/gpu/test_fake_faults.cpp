// Each kind of mistake with streams and memory, made on purpose: it is found whatever the numbers
// are, under every schedule, and the text names what was touched and by whom.
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
#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const at::TensorOptions kOnDevice = at::TensorOptions().device(at::kCUDA);

at::Tensor named(const char* name, at::Tensor tensor) {
  fake_gpu::name_memory(tensor.data_ptr(), tensor.nbytes(), name);
  return tensor;
}

class FakeFaults : public testing::EverySchedule {
 protected:
  FakeFaults() {
    fake_gpu::name_stream(c10::cuda::CUDAStream(side).stream(), "side");
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  }

  // What the test left unordered is so no longer, for what it frees.
  void TearDown() override {
    c10::cuda::device_synchronize();
    fake_gpu::findings();
  }

  // Runs `work` on the side stream.
  template <typename Work>
  void on_side(const Work& work) {
    const c10::StreamGuard guard(side);
    work();
  }

  const c10::Stream main = c10::cuda::getDefaultCUDAStream();
  const c10::Stream side = c10::cuda::getStreamFromPool();
  const at::Tensor x = named("gradient", at::full({256}, 1.0, kOnDevice));
  c10::Event event{at::kCUDA};
};
INSTANTIATE_TEST_SUITE_P(, FakeFaults, ::testing::ValuesIn(fake_gpu::kSchedules),
                         testing::name_of_schedule);

TEST_P(FakeFaults, ASideStreamThatDoesNotWaitForItsInput) {
  x.mul_(2);
  on_side([&] { x.sum(); });
  EXPECT_THAT(fake_gpu::findings(), Contains(AllOf(HasSubstr("race on 'gradient'"),
                                                   HasSubstr("'aten::mul' on stream "
                                                             "'default of device 0'"),
                                                   HasSubstr("'aten::sum' on stream 'side'"))));
}

TEST_P(FakeFaults, AMainStreamThatDoesNotWaitForTheSideStream) {
  event.record(main);
  event.block(side);
  on_side([&] { x.mul_(2); });
  x.sum();
  EXPECT_THAT(fake_gpu::findings(), Contains(AllOf(HasSubstr("race on 'gradient'"),
                                                   HasSubstr("'aten::mul' on stream 'side' writes"),
                                                   HasSubstr("'aten::sum'"))));
}

TEST_P(FakeFaults, AnEventRecordedOnTheWrongStream) {
  event.record(main);
  event.block(side);
  on_side([&] { x.mul_(2); });
  event.record(main);  // side was meant
  event.block(main);
  x.sum();
  EXPECT_THAT(fake_gpu::findings(), Contains(HasSubstr("race on 'gradient'")));
}

TEST_P(FakeFaults, ATensorFreedWhileAnotherStreamStillUsesIt) {
  for (const bool recorded : {false, true}) {
    at::Tensor message = named("message", at::full({256}, 2.0, kOnDevice));
    event.record(main);
    event.block(side);
    on_side([&] { x.sum().add_(message.sum()); });
    if (recorded)
      c10::cuda::CUDACachingAllocator::recordStream(message.storage().data_ptr(),
                                                    c10::cuda::CUDAStream(side));
    message = at::Tensor();
    at::full({256}, 3.0, kOnDevice);  // gets the same memory where it is free
    const auto findings = fake_gpu::findings();
    if (recorded) {
      EXPECT_THAT(findings, IsEmpty());
    } else {
      // With whatever ran last: the free, the allocation, or the new owner's write.
      EXPECT_THAT(findings, Contains(AllOf(HasSubstr("race on 'message'"),
                                           HasSubstr("'aten::sum' on stream 'side' reads"))));
    }
    event.record(side);
    event.block(main);
  }
}

TEST_P(FakeFaults, AViewThatOutlivesItsTensor) {
  at::Tensor tensor = named("residual", at::full({256}, 2.0, kOnDevice));
  const at::Tensor view = at::from_blob(tensor.data_ptr(), {256}, kOnDevice);
  tensor = at::Tensor();
  view.mul_(2);
  EXPECT_THAT(
      fake_gpu::findings(),
      Contains(HasSubstr("use after free: 'aten::mul' on stream 'default of device 0' reads "
                         "'residual'")));
}

TEST_P(FakeFaults, MemoryThatNothingWrote) {
  const at::Tensor state = named("state", at::empty({256}, kOnDevice));
  state.narrow(0, 0, 100).fill_(1);
  state.narrow(0, 0, 100).sum();
  EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  state.narrow(0, 50, 60).sum();
  EXPECT_THAT(fake_gpu::findings(), ElementsAre(AllOf(HasSubstr("never written: 'aten::sum'"),
                                                      HasSubstr("'state' at byte 400"))));
}

TEST_P(FakeFaults, AnAccessPastTheEndOfATensor) {
  const at::Tensor last = named("last", at::full({100}, 1.0, kOnDevice));
  at::from_blob(last.data_ptr(), {101}, kOnDevice).sum();
  EXPECT_THAT(
      fake_gpu::findings(),
      ElementsAre(HasSubstr("'aten::sum' on stream 'default of device 0' reads past the end "
                            "of 'last' at byte 400")));
}

TEST_P(FakeFaults, AWaitOfTheHostWhereNoneMayBe) {
  {
    const fake_gpu::NoHostSync guard;
    x.add_(1);
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
    x.sum().item<float>();
  }
  EXPECT_THAT(fake_gpu::findings(),
              ElementsAre("host sync: cudaStreamSynchronize where the host must not wait"));
  x.sum().item<float>();
  EXPECT_THAT(fake_gpu::findings(), IsEmpty());
}

TEST_P(FakeFaults, AStreamThatWaitsForAnotherIsSeen) {
  const auto handle = [](const c10::Stream& stream) {
    return c10::cuda::CUDAStream(stream).stream();
  };
  event.record(main);
  event.block(side);
  EXPECT_TRUE(fake_gpu::waits_for(handle(side), handle(main)));
  on_side([&] { at::zeros({10}, kOnDevice); });
  EXPECT_FALSE(fake_gpu::waits_for(handle(main), handle(side)));
  event.record(side);
  EXPECT_FALSE(fake_gpu::waits_for(handle(main), handle(side)));
  event.block(main);
  EXPECT_TRUE(fake_gpu::waits_for(handle(main), handle(side)));
  on_side([&] { at::zeros({10}, kOnDevice); });
  EXPECT_FALSE(fake_gpu::waits_for(handle(main), handle(side)));
}

// Queues the kernel that encodes a tensor.
void encode(const at::Tensor& values, const at::Tensor& payload, const c10::Stream& stream) {
  TensorView view = comm::view_of(values);
  view.stream = c10::cuda::CUDAStream(stream).stream();
  const auto codec = make_codec("quantize(bits=4)");
  // As long as it has to be, whatever the tensor is.
  const std::span<std::byte> bytes(static_cast<std::byte*>(payload.data_ptr()),
                                   codec->max_compressed_bytes(view.numel, view.dtype));
  codec->compress(as_const(view), {.seed = 1}, bytes);
}
constexpr std::int64_t kPayloadBytes = 136;  // of 256 values: two floats, and half a byte each

// What our kernels touch is known when they ran, and found all the same.
TEST_P(FakeFaults, AKernelThatDoesNotWaitForItsInput) {
  at::Tensor payload;
  on_side([&] { payload = at::empty({kPayloadBytes}, kOnDevice.dtype(at::kByte)); });
  x.mul_(2);
  encode(x, payload, side);
  EXPECT_THAT(fake_gpu::findings(),
              Contains(AllOf(HasSubstr("race on 'gradient'"), HasSubstr("'aten::mul'"),
                             HasSubstr("'quantize_kernel' on stream 'side'"))));
}

TEST_P(FakeFaults, AKernelThatWritesPastTheEndOfATensor) {
  const at::Tensor payload =
      named("payload", at::empty({kPayloadBytes - 1}, kOnDevice.dtype(at::kByte)));
  encode(x, payload, main);
  EXPECT_THAT(fake_gpu::findings(),
              ElementsAre("out of bounds: 'quantize_kernel' on stream 'default of device 0' writes "
                          "past the end of 'payload' at byte 135"));
}

TEST_P(FakeFaults, AKernelThatReadsWhatNothingWrote) {
  encode(at::empty({256}, kOnDevice), at::empty({kPayloadBytes}, kOnDevice.dtype(at::kByte)), main);
  EXPECT_THAT(fake_gpu::findings(),
              Contains(AllOf(HasSubstr("kernel quantize_kernel on stream 'default of device 0': "),
                             HasSubstr("was never written"))));
}

TEST(FakeFaultsOfTheHost, AnAddressOfTheDeviceThatTheHostFollows) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const at::Tensor x = named("gradient", at::full({256}, 1.0, kOnDevice));
  const volatile float* address = x.const_data_ptr<float>();
  EXPECT_DEATH((void)address[3],
               "the host follows an address of device memory: 'gradient' at byte 12");
}

}  // namespace
}  // namespace thinwire
