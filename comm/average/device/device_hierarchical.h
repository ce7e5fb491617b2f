// hierarchical (reduce/hierarchical.h) of a bucket in GPU memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/device/device_exchange.h"
#include "thinwire/comm/average/device/device_scatter.h"
#include "thinwire/comm/average/device/hierarchical_tables.h"

namespace thinwire::comm {

// The same slices, owners, random numbers and sums as on the CPU, so that the means have the same
// bits. An exchange of slices in float32 among the ranks of a host, in which, between adding up and
// sending on, an exchange of compressed slices stands among the ranks of a lane. Both are
// collectives of the whole group in which ranks bring nothing to most others: over NCCL what stays
// in a host takes the host's own links.
//
// As DeviceScatter otherwise: queues everything, waits for nothing of its own.
class DeviceHierarchical {
 public:
  DeviceHierarchical(c10d::ProcessGroup& group, at::Device device);

  // As DeviceScatter::average().
  void average(const DeviceExchange& exchange, const HierarchicalTables& tables,
               const at::Tensor& bucket);

  // Bytes held.
  std::size_t bytes() const;

 private:
  DeviceScatter inside_, between_;
  // Words of an exchange that does not count, and of layers that keep nothing.
  at::Tensor counts_not_, keeps_not_;
};

}  // namespace thinwire::comm
