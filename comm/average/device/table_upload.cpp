#include "thinwire/comm/average/device/table_upload.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace thinwire::comm {

at::Tensor bytes_on(at::Device device, const void* bytes, std::size_t count) {
  return at::from_blob(const_cast<void*>(bytes), {static_cast<std::int64_t>(count)}, at::kByte)
      .to(device);
}

void record_on_current_stream(const std::vector<at::Tensor>& tensors, at::Device device) {
  const c10::impl::VirtualGuardImpl streams(device.type());
  const c10::Stream stream = streams.getStream(device);
  for (const at::Tensor& values : tensors)
    streams.recordDataPtrOnStream(values.storage().data_ptr(), stream);
}

void enlarge(at::Tensor& memory, std::int64_t numel, at::ScalarType type, at::Device device) {
  if (memory.defined() && memory.numel() >= numel) return;
  memory = at::zeros({numel + numel / 8}, at::TensorOptions(type).device(device));
}

}  // namespace thinwire::comm
