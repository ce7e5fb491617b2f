#include "thinwire/comm/average/device/device_scatter.h"

#include "thinwire/comm/average/device/scatter_run.h"
#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/wire/tensor_bridge.h"

namespace thinwire::comm {

DeviceScatter::DeviceScatter(c10d::ProcessGroup& group, at::Device device)
    : group_(group), device_(device), module_(CudaModule::get()) {}

void DeviceScatter::make_room(const PieceTables& tables) {
  enlarge(workspace_, tables.workspace_bytes(), at::kByte, device_);
  enlarge(sums_, tables.own_elements(), at::kFloat, device_);
  enlarge(segment_sums_, tables.most_segments(), at::kLong, device_);
  const auto tiles = static_cast<std::int64_t>(tables.tiles().count);
  enlarge(residual_finite_, tiles, at::kInt, device_);
  enlarge(mean_finite_, tiles, at::kInt, device_);
  enlarge(keep_, tables.layer_count(), at::kInt, device_);
}

void DeviceScatter::average(const DeviceExchange& exchange, const PieceTables& tables,
                            const at::Tensor& bucket) {
  if (tables.tiles().count == 0) return;
  make_room(tables);
  Run run(*this, exchange, tables,
          {dtype_of(bucket), bucket.mutable_data_ptr(), room_for_lost(bucket)});
  // A chunk is encoded while the one before it is on the wire. All ranks start their collectives in
  // this order.
  const std::size_t chunks = tables.chunks().size();
  for (std::size_t tick = 0; tick <= chunks; ++tick) {
    if (tick < chunks) run.send_slices(tick);
    if (tick >= 1) run.reduce_own_slice(tick - 1);
  }
  run.hear_all();
  run.decode_all();
}

float* DeviceScatter::room_for_lost(const at::Tensor& bucket) {
  if (bucket.scalar_type() == at::kFloat) return bucket.mutable_data_ptr<float>();
  enlarge(lost_, bucket.numel(), at::kFloat, device_);
  return lost_.mutable_data_ptr<float>();
}

std::size_t DeviceScatter::bytes() const {
  std::size_t bytes = 0;
  for (const at::Tensor* memory :
       {&workspace_, &lost_, &sums_, &segment_sums_, &residual_finite_, &mean_finite_, &keep_}) {
    if (memory->defined()) bytes += memory->nbytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
