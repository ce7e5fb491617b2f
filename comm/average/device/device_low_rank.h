// low_rank (reduce/low_rank.h) of the layers of a bucket in GPU memory: the same factors and sums,
// so that the means have the same bits.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/device/device_exchange.h"
#include "thinwire/comm/average/device/device_scatter.h"
#include "thinwire/comm/average/device/low_rank_tables.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire::comm {

// The factors of all layers lie in a row, and are averaged as the layers of a bucket are. Otherwise
// as DeviceScatter. Not thread-safe.
class DeviceLowRank {
 public:
  // `scatter` outlives the object.
  DeviceLowRank(c10d::ProcessGroup& group, at::Device device, DeviceScatter& scatter);

  // Makes the factors and their means. The corrected gradients are in the bucket, or if that is not
  // float32 here, until deliver(). Throws CommError where a collective cannot be started.
  void exchange(const DeviceExchange& exchange, const LowRankTables& tables,
                const at::Tensor& bucket);
  // Once all parts of the exchange have come: keeps what was lost and where to start from where the
  // step counts, and replaces the layers' elements by their mean.
  void deliver(const DeviceExchange& exchange, const LowRankTables& tables,
               const at::Tensor& bucket);

  // Bytes held.
  std::size_t bytes() const;

 private:
  void make_room(const LowRankTables& tables, const at::Tensor& bucket);
  kernels::LowRankTask task_of(const DeviceExchange& exchange, const LowRankTables& tables,
                               const at::Tensor& bucket, int round) const;
  void run(const kernels::LowRankTask& task, kernels::LowRankStage stage) const;

  c10d::ProcessGroup& group_;
  const at::Device device_;
  const CudaModule& module_;
  DeviceScatter& scatter_;
  at::Tensor p_, q_, own_q_;
  at::Tensor matrix_;  // of buckets that are not float32
};

}  // namespace thinwire::comm
