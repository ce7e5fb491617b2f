// gather_reduce (reduce/gather_reduce.h) and, of summable codecs, dense (reduce/summable_reduce.h)
// of the layers of a bucket in GPU memory of which few entries are sent: the same entries and sums,
// so that the means have the same bits.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/device/device_exchange.h"
#include "thinwire/comm/average/device/device_scatter.h"
#include "thinwire/comm/average/device/sparse_tables.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire::comm {

// Frames have a size that the host knows: payloads are those of the codecs, with indices in form
// 253 of index_coder.h. Otherwise as DeviceScatter. Not thread-safe.
class DeviceSparse {
 public:
  // `scatter` outlives the object.
  DeviceSparse(c10d::ProcessGroup& group, at::Device device, DeviceScatter& scatter);

  // Chooses the entries, sends them to all and looks at what has come. What they lost is in the
  // bucket, or if that is not float32 here, until deliver(). Throws CommError where a collective
  // cannot be started.
  void exchange(const DeviceExchange& exchange, const SparseTables& tables,
                const at::Tensor& bucket);
  // Once all parts of the exchange have come: keeps what was lost where the step counts, and
  // replaces the layers' elements by their mean.
  void deliver(const DeviceExchange& exchange, const SparseTables& tables,
               const at::Tensor& bucket);

  // Bytes held.
  std::size_t bytes() const;

 private:
  void gather(const DeviceExchange& exchange, const SparseTables& tables,
              const kernels::SparseTask& task, void* stream);
  void make_room(const SparseTables& tables, const at::Tensor& bucket);
  kernels::SparseTask task_of(const DeviceExchange& exchange, const SparseTables& tables,
                              const at::Tensor& bucket) const;
  void sum(const SparseTables& tables, const kernels::DeviceFrame* frames, std::uint32_t count,
           void* stream) const;

  c10d::ProcessGroup& group_;
  const at::Device device_;
  const CudaModule& module_;
  DeviceScatter& scatter_;
  at::Tensor workspace_;  // bytes: all messages
  at::Tensor lost_;       // of buckets that are not float32
  at::Tensor chosen_, magnitudes_, scales_;
  at::Tensor states_;                                      // bytes
  at::Tensor segment_sums_;                                // 64 bits each
  at::Tensor bins_, tally_, indices_, finite_, poisoned_;  // 32 bits each
};

}  // namespace thinwire::comm
