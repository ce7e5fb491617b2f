// Averages in entropy-coded slots (reduce/slot_reduce.h) of the layers of a bucket in GPU memory:
// the same slices, steps, payloads and sums, so that the means have the same bits.
#pragma once

#include <cstddef>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/device/device_exchange.h"
#include "thinwire/comm/average/device/slot_tables.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire::comm {

// Slots have sizes that the host knows: those that the last training step's reports lead to, which
// SlotTables::learn() has told the shared steps before. Otherwise as DeviceScatter. Not
// thread-safe.
class DeviceSlots {
 public:
  DeviceSlots(c10d::ProcessGroup& group, at::Device device);

  // This rank's first step where the shared ones have none, for both ways: from the gradient of all
  // layers. Waits for the device.
  static float first_step(const SlotReduce& reduction, const SharedSteps::Use& use,
                          std::span<const DeviceLayer> layers, const at::Tensor& bucket,
                          const DeviceMemory& memory, int world);

  // Sends the slices, makes the means of this rank's and looks at all of them. What was lost is in
  // the bucket, or if that is not float32 here, until deliver(). Throws CommError where a
  // collective cannot be started.
  void exchange(const DeviceExchange& exchange, SlotTables& tables, const SharedSteps::Use& use,
                const at::Tensor& bucket);
  // Once all parts of the exchange have come: keeps what was lost where the step counts, replaces
  // the layers' elements by their mean, and reports what the slots took.
  void deliver(const DeviceExchange& exchange, SlotTables& tables, const at::Tensor& bucket);

  // Bytes held.
  std::size_t bytes() const;

 private:
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  void make_room(const SlotTables& tables, const at::Tensor& bucket);
  kernels::SlotPassTask task_of(const DeviceExchange& exchange, const SlotTables& tables,
                                const at::Tensor& bucket) const;
  kernels::WriteTask write_task(const SlotTables& tables, float step) const;
  kernels::FrameTask frame_task(const DeviceExchange& exchange) const;
  void sum(const SlotTables& tables, const FrameRun& run) const;
  void run(kernels::SlotPassTask task, kernels::SlotPass pass, const TileRun& tiles) const;
  void send_slices(const DeviceExchange& exchange, const SlotTables& tables,
                   const SharedSteps::Use& use, const kernels::SlotPassTask& task,
                   std::size_t index);
  void reduce_own_slice(const DeviceExchange& exchange, const SlotTables& tables,
                        const SharedSteps::Use& use, const kernels::SlotPassTask& task,
                        std::size_t index);
  at::Tensor part(std::int64_t begin, std::int64_t bytes) const;
  void wait_for(const DeviceExchange& exchange, const WorkPtr& work) const;

  c10d::ProcessGroup& group_;
  const at::Device device_;
  const CudaModule& module_;
  at::Tensor workspace_;  // bytes: all messages
  at::Tensor scratch_;    // bytes: codes
  at::Tensor lost_;       // of buckets that are not float32
  at::Tensor sums_;
  at::Tensor begins_;                                // by chunk, see WriteTask
  at::Tensor segment_sums_;                          // 64 bits each
  at::Tensor residual_finite_, mean_finite_, keep_;  // 32 bits each
  // Of the exchange in progress:
  void* stream_ = nullptr;
  std::vector<WorkPtr> scatters_, gathers_;
};

}  // namespace thinwire::comm
