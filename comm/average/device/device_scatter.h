// scatter_reduce (reduce/scatter_reduce.h) of a bucket in GPU memory: the same slices, owners,
// random numbers and sums, so that the means have the same bits.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/device/device_exchange.h"
#include "thinwire/comm/average/device/piece_tables.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire::comm {

// Queues everything on the current stream, which has to be the same in all calls, and waits for
// nothing where the group's backend does not (NCCL: its work is ordered by streams). Memory is kept
// for the buckets that come after: what they share are messages and scratch, since one stream works
// on one bucket after the other.
//
// What a rank does with a frame that does not fit: it goes on, notes it for the host
// (DeviceVerdicts), says so in the frames that it still owes the others, and changes no residual.
//
// Not thread-safe.
class DeviceScatter {
 public:
  DeviceScatter(c10d::ProcessGroup& group, at::Device device);

  // Replaces the elements of the tables' layers by their mean; the last part of an exchange. Throws
  // CommError where a collective cannot be started.
  void average(const DeviceExchange& exchange, const PieceTables& tables, const at::Tensor& bucket);

  // The same in parts, see scatter_run.h.
  class Run;
  // Before a Run by these tables is made.
  void make_room(const PieceTables& tables);
  // Where encoding a bucket leaves what it loses.
  float* room_for_lost(const at::Tensor& bucket);
  // Of the own slices of a Run, by DevicePiece::own.
  float* sums() const { return sums_.mutable_data_ptr<float>(); }
  std::byte* workspace() const { return static_cast<std::byte*>(workspace_.mutable_data_ptr()); }

  // Bytes held.
  std::size_t bytes() const;

 private:
  c10d::ProcessGroup& group_;
  const at::Device device_;
  const CudaModule& module_;
  at::Tensor workspace_;  // bytes: all messages
  at::Tensor lost_;       // of buckets that are not float32
  at::Tensor sums_;
  at::Tensor segment_sums_;                          // 64 bits each
  at::Tensor residual_finite_, mean_finite_, keep_;  // 32 bits each
};

}  // namespace thinwire::comm
