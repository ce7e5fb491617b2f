#include "thinwire/tests/support/fake_gpu/aten/tasks.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace thinwire::fake_gpu {

TensorPlace TensorPlace::of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.sizes().vec(), tensor.strides().vec(), tensor.scalar_type()};
}

at::Tensor TensorPlace::in_task() const {
  return at::from_blob(shadow(data), sizes, strides, at::TensorOptions(dtype));
}

Access TensorPlace::access(bool write) const {
  std::int64_t last = 0;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return {data, 0, write};
    last += (sizes[d] - 1) * strides[d];
  }
  return {data, static_cast<std::size_t>(last + 1) * c10::elementSize(dtype), write};
}

void queue(at::Device device, const std::string& what, std::function<void()> run,
           std::vector<Access> accesses) {
  // The default stream's handle is null whatever the device, so ours goes by the device.
  const auto stream = c10::cuda::getCurrentCUDAStream(device.index());
  Stream* const ours =
      stream.stream() == nullptr ? default_stream(device.index()) : stream_of(stream.stream());
  enqueue(ours, {what,
                 [run = std::move(run)] {
                   const at::AutoDispatchBelowAutograd below;
                   const c10::NoGradGuard no_grad;
                   try {
                     run();
                   } catch (const c10::Error& error) {
                     add_finding("'" + current_task()->what +
                                 "' fails: " + error.what_without_backtrace());
                   }
                 },
                 std::move(accesses)});
}

}  // namespace thinwire::fake_gpu
