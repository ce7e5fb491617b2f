#include "thinwire/comm/average/device/device_hierarchical.h"

#include <ATen/ops/eq.h>
#include <ATen/ops/ones.h>

#include "thinwire/comm/average/device/scatter_run.h"
#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/wire/tensor_bridge.h"

namespace thinwire::comm {
namespace {

// Frames between hosts are told apart from those inside.
constexpr std::uint64_t kBetweenLayout = 0xE7037ED1A0B428DBu;

constexpr std::int64_t kExchangeWords = sizeof(kernels::ExchangeWords) / sizeof(std::int32_t);

}  // namespace

DeviceHierarchical::DeviceHierarchical(c10d::ProcessGroup& group, at::Device device)
    : inside_(group, device),
      between_(group, device),
      counts_not_(at::ones({kExchangeWords}, at::TensorOptions(at::kInt).device(device))) {}

void DeviceHierarchical::average(const DeviceExchange& exchange, const HierarchicalTables& tables,
                                 const at::Tensor& bucket) {
  if (tables.inside().tiles().count == 0) return;
  inside_.make_room(tables.inside());
  between_.make_room(tables.between());
  enlarge(keeps_not_, tables.between().layer_count(), at::kInt, bucket.device());
  DeviceExchange between_hosts = exchange;
  between_hosts.layout ^= kBetweenLayout;
  between_hosts.begins = false;
  // What a lane averages lies where the mean of this rank's slice is sent from.
  const auto values_of = [&](std::size_t chunk) -> DeviceScatter::Run::Values {
    return {DType::kFloat32, inside_.workspace() + tables.values_at(chunk), inside_.sums()};
  };
  DeviceScatter::Run inside(
      inside_, exchange, tables.inside(),
      {dtype_of(bucket), bucket.mutable_data_ptr(), inside_.room_for_lost(bucket)});
  DeviceScatter::Run between(between_, between_hosts, tables.between(), values_of(0));
  const auto* nothing_counts = static_cast<kernels::ExchangeWords*>(counts_not_.mutable_data_ptr());
  static_assert(offsetof(kernels::ExchangeWords, not_finite) == sizeof(std::int32_t));
  const at::Tensor not_finite = exchange.words_memory.narrow(0, 1, 1);
  const std::size_t chunks = tables.inside().chunks().size();
  for (std::size_t tick = 0; tick <= chunks; ++tick) {
    if (tick < chunks) inside.send_slices(tick);
    if (tick == 0) continue;
    const std::size_t chunk = tick - 1;
    inside.add_up(chunk);
    between.use(values_of(chunk));
    between.send_slices(chunk);
    between.reduce_own_slice(chunk);
    between.hear_means(chunk);
    between.decode(chunk, tables.between().pieces(), nothing_counts, keeps_not_);
    // Of the mean of the slice the lane's frames tell whether it is finite.
    inside.finite_means(chunk).copy_(not_finite.eq(0));
    inside.send_mean(chunk);
  }
  inside.hear_all();
  between.decide();
  inside.keep().mul_(between.keep());
  between.keep().copy_(inside.keep());
  // Inside a host nothing is lost, so all residuals become zero but those of what a lane encoded.
  inside.decode_all();
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    between.use(values_of(chunk));
    between.decode(chunk, tables.kept(), exchange.words, between.keep());
  }
}

std::size_t DeviceHierarchical::bytes() const {
  return inside_.bytes() + between_.bytes() + counts_not_.nbytes() +
         (keeps_not_.defined() ? keeps_not_.nbytes() : 0);
}

}  // namespace thinwire::comm
