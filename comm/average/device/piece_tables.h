// The tables by which kernels average a bucket (compressors/kernels/piece_task.h), and where its
// messages lie in the workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/device/device_memory.h"
#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::comm {

// One layer of a bucket whose layers share an exchange.
struct DeviceLayer {
  std::uint32_t id = 0;  // equal on all ranks, derived from the parameter's name
  std::string_view name = {};
  const Codec* codec = nullptr;
  std::int64_t offset = 0;  // first element in the bucket
  std::int64_t numel = 0;
  bool compressed = true;   // false: goes as it is, and gets back what it is owed
  bool keeps_loss = false;  // of a compressed layer: error feedback is on
  float decay = 1;
  std::int64_t reset_every = 0;
  std::optional<MomentumCorrectionOptions> momentum = {};  // in place of error feedback
  // Ranges of which this rank keeps the second residual, in order.
  DeviceMemory::Extents owned = {};
  // In place of DeviceMemory's residuals, of a layer without a name that keeps its loss: float32 of
  // the layer's size.
  at::Tensor lost = {}, lost_of_means = {};
};

// Some of the bucket's tiles, one after another.
struct TileRun {
  std::uint64_t first = 0, count = 0;
};

// Some of the table of frames, one after another, and the segments of their sums.
struct FrameRun {
  std::size_t first = 0;
  std::uint32_t count = 0, segments = 0;
};

// One chunk's part of an exchange. Places and sizes are bytes of the workspace.
struct DeviceChunk {
  TileRun tiles, own;  // all, and those of this rank's slice
  std::int64_t sent_at = 0, received_at = 0, made_at = 0, arrived_at = 0;
  std::vector<std::int64_t> sent_sizes, received_sizes;  // by rank
  // What every rank gives to the all_gather of the means: the largest frame of any.
  std::int64_t mean_size = 0;
  FrameRun sent;
  // The frames of this rank's slice from all ranks, and then that of its mean.
  FrameRun reduced;
};

// Made once a layout and for the residuals of then: DeviceMemory::version() tells whether they are
// still those. Not thread-safe.
class PieceTables {
 public:
  // Queues the copy of the tables on the current stream, and waits for it.
  // `partition` is that of the layers, whose codecs have a piece_format().
  PieceTables(std::span<const DeviceLayer> layers, const Partition& partition, int rank,
              at::Device device, DeviceMemory& memory);

  const std::vector<DeviceChunk>& chunks() const { return chunks_; }
  TileRun tiles() const { return {0, tiles_}; }
  FrameRun means() const { return means_; }

  const kernels::DevicePiece* pieces() const;
  std::uint32_t piece_count() const { return piece_count_; }
  std::uint32_t threads() const { return threads_; }
  const kernels::DeviceFrame* frames(const FrameRun& run) const;
  const kernels::LayerTiles* layers() const;
  std::uint32_t layer_count() const { return layer_count_; }

  std::int64_t workspace_bytes() const { return workspace_; }
  std::int64_t own_elements() const { return own_; }
  std::uint32_t most_segments() const { return most_segments_; }

  // Whether residuals are paid back in this exchange that are then to be dropped.
  bool pays_back() const { return pays_back_; }
  std::uint64_t memory_version() const { return memory_version_; }
  // Bytes that this rank hands to the network, and those of its means among them.
  std::uint64_t sent_bytes() const { return sent_bytes_; }
  std::uint64_t mean_bytes() const { return mean_bytes_; }

 private:
  struct Maker;

  std::vector<DeviceChunk> chunks_;
  FrameRun means_;
  std::uint64_t tiles_ = 0;
  std::uint32_t piece_count_ = 0, layer_count_ = 0, threads_ = 0, most_segments_ = 0;
  std::int64_t workspace_ = 0, own_ = 0;
  bool pays_back_ = false;
  std::uint64_t memory_version_ = 0, sent_bytes_ = 0, mean_bytes_ = 0;
  at::Tensor pieces_, frames_, layers_;  // bytes, on the device
  std::vector<at::Tensor> held_;         // whose addresses the pieces have
};

}  // namespace thinwire::comm
