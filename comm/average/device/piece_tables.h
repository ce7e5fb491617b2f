// The tables by which kernels average a bucket (compressors/kernels/piece_task.h), and where its
// messages lie in the workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

// What a layer is owed, as far as kernels add it; undefined: nothing.
struct LayerDebts {
  at::Tensor residual, orphan, leftover;
  bool is_paid_back = false;  // some of it, for good

  // `keeps`: the layer's loss is kept here; `pays`: what is owed is added to the values.
  static LayerDebts of(const DeviceLayer& layer, bool keeps, bool pays, DeviceMemory& memory,
                       std::vector<at::Tensor>& held);
};

// Elements of a layer, but for tiles, format and places: what is known of them, and owed.
kernels::DevicePiece piece_of_layer(const DeviceLayer& layer, const LayerDebts& debts,
                                    std::int64_t begin, std::int64_t numel);

// Some of the bucket's tiles, one after another.
struct TileRun {
  std::uint64_t first = 0, count = 0;
};

// Some of the table of frames, one after another, and the segments of their sums.
struct FrameRun {
  std::size_t first = 0;
  std::uint32_t count = 0, segments = 0;
};

// Who makes an exchange of slices, and what of.
struct PieceScope {
  // Its ranks in the group, in order, and this one's place among them. The others of the group make
  // equally many collectives, in which these bring nothing.
  std::vector<int> members;
  int rank = 0;
  int group_size = 1;
  int chunks = 1;
  std::function<const Slice&(int chunk, int owner)> slice;
  // A piece's layer in the list of the layers, its first element in the layer and in the bucket.
  struct Place {
    std::size_t layer = 0;
    std::int64_t begin = 0, value = 0;
  };
  std::function<Place(int chunk, const Piece& piece)> place;
  // Whether what is owed is added to the values; whether owners keep what their means lose.
  bool pays = true, keeps_means = true;
  // Whether what encoding loses stays where it is: keeping it is for other tables.
  bool only_codes = false;
  // Whether the frame of this rank's mean is made by itself, after those of its slice are heard;
  // whether means are heard chunk by chunk.
  bool sums_apart = false, means_apart = false;

  // All ranks of a group, and the layers of a bucket; `partition` lives longer.
  static PieceScope of_group(std::span<const DeviceLayer> layers, const Partition& partition,
                             int rank);
  bool is_whole_group() const { return static_cast<int>(members.size()) == group_size; }
};

// One chunk's part of an exchange. Places and sizes are bytes of the workspace.
struct DeviceChunk {
  TileRun tiles, own;  // all, and those of this rank's slice
  std::int64_t sent_at = 0, received_at = 0, made_at = 0, arrived_at = 0;
  std::vector<std::int64_t> sent_sizes, received_sizes;  // by rank of the group
  std::int64_t own_size = 0;                             // of each frame that is received
  // What every rank gives to the all_gather of the means: the largest frame of any. Where not all
  // of the group take part, `mean_sizes` by rank of the group, and as many copies are sent.
  std::int64_t mean_size = 0;
  std::vector<std::int64_t> mean_sizes;
  FrameRun sent;
  // The frames of this rank's slice from all ranks, and then that of its mean.
  FrameRun reduced;
  // PieceScope::sums_apart: that of its mean; means_apart: those of all ranks' means.
  FrameRun made, means;
};

// Made once a layout and for the residuals of then: DeviceMemory::version() tells whether they are
// still those. Not thread-safe.
class PieceTables {
 public:
  // Queues the copy of the tables on the current stream, and waits for it.
  // `partition` is that of the layers, whose codecs have a piece_format().
  PieceTables(std::span<const DeviceLayer> layers, const Partition& partition, int rank,
              at::Device device, DeviceMemory& memory);
  PieceTables(std::span<const DeviceLayer> layers, const PieceScope& scope, at::Device device,
              DeviceMemory& memory);

  const std::vector<DeviceChunk>& chunks() const { return chunks_; }
  std::uint32_t ranks() const { return ranks_; }
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
  std::uint32_t ranks_ = 1;
  std::int64_t workspace_ = 0, own_ = 0;
  bool pays_back_ = false;
  std::uint64_t memory_version_ = 0, sent_bytes_ = 0, mean_bytes_ = 0;
  at::Tensor pieces_, frames_, layers_;  // bytes, on the device
  std::vector<at::Tensor> held_;         // whose addresses the pieces have
};

}  // namespace thinwire::comm
