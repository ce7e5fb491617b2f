// The table by which kernels average layers of which few entries are sent
// (compressors/kernels/sparse_task.h), and where a rank's message has which layer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/device/piece_tables.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire::comm {

// Made once a layout and for the residuals of then, as PieceTables. Not thread-safe.
class SparseTables {
 public:
  // Queues the copy of the tables on the current stream, and waits for it. The layers' codecs have
  // an entry_form(), or all of them are summable (randomk).
  SparseTables(std::span<const DeviceLayer> layers, int rank, int world, at::Device device,
               DeviceMemory& memory);

  // Of summable codecs: the slices of all entries as one layer; null: frames of entries travel.
  const PieceTables* slices() const { return slices_.get(); }

  // Layers, tiles and runs; all else is zero.
  kernels::SparseTask task() const;
  const kernels::DeviceFrame* leaving() const;
  const kernels::DeviceFrame* arriving() const { return leaving() + 1; }
  // Segments of the sum of one frame.
  std::uint32_t segments() const { return segments_; }

  std::int64_t entries() const { return entries_; }
  // Of a rank's frame, header and padding included.
  std::int64_t frame_bytes() const { return frame_bytes_; }

  // As PieceTables'.
  bool pays_back() const { return pays_back_; }
  std::uint64_t memory_version() const { return memory_version_; }
  // Bytes that this rank hands to the network, and those of its means among them.
  std::uint64_t sent_bytes() const { return slices_ ? slices_->sent_bytes() : sent_bytes_; }
  std::uint64_t mean_bytes() const { return slices_ ? slices_->mean_bytes() : 0; }

 private:
  kernels::SparseLayer made_of(const DeviceLayer& layer, DeviceMemory& memory);

  std::uint32_t count_ = 0, segments_ = 0;
  std::uint64_t tiles_ = 0, runs_ = 0;
  std::int64_t entries_ = 0, frame_bytes_ = 0;
  bool pays_back_ = false;
  std::uint64_t memory_version_ = 0, sent_bytes_ = 0;
  std::unique_ptr<PieceTables> slices_;
  at::Tensor layers_, frames_;    // bytes, on the device
  std::vector<at::Tensor> held_;  // whose addresses the layers have
};

}  // namespace thinwire::comm
