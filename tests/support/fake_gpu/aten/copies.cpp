#include "thinwire/tests/support/fake_gpu/aten/copies.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "thinwire/tests/support/fake_gpu/aten/tasks.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/memory.h"

namespace thinwire::fake_gpu {
namespace {

// Makes the stream of one device wait for what another device's has now.
void order(const c10::Stream& later, const c10::Stream& earlier) {
  c10::Event event(at::kCUDA);
  event.record(earlier);
  event.block(later);
}

}  // namespace

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0 || to.is_same(from)) return to;
  const bool from_device = from.is_cuda(), to_device = to.is_cuda();
  const at::Device device = from_device ? from.device() : to.device();
  const c10::DeviceGuard guard(device);
  const c10::Stream stream = c10::cuda::getCurrentCUDAStream(device.index());
  const bool between_devices = from_device && to_device && from.device() != to.device();
  const c10::Stream other =
      between_devices ? c10::cuda::getCurrentCUDAStream(to.device().index()).unwrap() : stream;

  at::Tensor source = from.expand_as(to);
  const at::Tensor& on_host = from_device ? to : source;
  const bool pinned = (!from_device || !to_device) && is_pinned(on_host.const_data_ptr());
  const bool waits = !(from_device && to_device) && !(non_blocking && pinned);
  // Pageable memory is read before the call returns; its copy lives as long as the task.
  if (!from_device && waits) source = source.clone();

  AtomicCounters& count = counting();
  ++(!from_device ? count.to_device : to_device ? count.on_device : count.to_host);
  std::vector<Access> accesses;
  if (from_device || (pinned && !waits)) accesses.push_back(TensorPlace::of(source).access(false));
  if (to_device || pinned) accesses.push_back(TensorPlace::of(to).access(true));
  if (between_devices) order(stream, other);
  queue(
      device, "aten::copy_",
      [from = TensorPlace::of(source), to = TensorPlace::of(to),
       keep = from_device ? at::Tensor() : source] { to.in_task().copy_(from.in_task()); },
      std::move(accesses));
  if (between_devices) order(other, stream);
  if (!to_device && waits) c10::cuda::stream_synchronize(c10::cuda::CUDAStream(stream).stream());
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::Tensor target = to;
  if (from.sizes() != to.sizes()) target.resize_(from.sizes());
  return copy_(target, from, false);
}

at::Tensor& fill_(at::Tensor& self, const at::Scalar& value) {
  if (self.numel() == 0) return self;
  const TensorPlace place = TensorPlace::of(self);
  queue(self.device(), "aten::fill_", [place, value] { place.in_task().fill_(value); },
        {place.access(true)});
  return self;
}

at::Tensor& zero_(at::Tensor& self) {
  return fill_(self, 0);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  at::Tensor host = at::empty({}, tensor.options().device(at::kCPU));
  copy_(host, tensor.reshape({}), false);
  return host.item();
}

}  // namespace thinwire::fake_gpu
