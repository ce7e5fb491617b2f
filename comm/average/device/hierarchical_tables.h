// The tables of hierarchical exchanges of a bucket in GPU memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/device/piece_tables.h"
#include "thinwire/comm/average/reduce/hierarchical.h"

namespace thinwire::comm {

// As PieceTables. What the ranks of a host exchange is float32; what those of a lane exchange is
// this rank's slice of it, by the layers' codecs, chunk by chunk.
class HierarchicalTables {
 public:
  // `layers` are those of `reduction`, in its order.
  HierarchicalTables(std::span<const DeviceLayer> layers, const Hierarchical& reduction,
                     int group_size, at::Device device, DeviceMemory& memory);

  const PieceTables& inside() const { return inside_; }
  const PieceTables& between() const { return between_; }
  // Those of `between` with the residuals, which no encoding between hosts reads.
  const kernels::DevicePiece* kept() const { return kept_.pieces(); }

  // Of a chunk, in the workspace of `inside`: where the value 0 of `between` would lie, if the
  // chunk's own values are the payload of this rank's mean.
  std::int64_t values_at(std::size_t chunk) const { return values_at_[chunk]; }

  bool pays_back() const { return inside_.pays_back(); }
  std::uint64_t memory_version() const { return inside_.memory_version(); }
  std::uint64_t sent_bytes() const { return inside_.sent_bytes() + between_.sent_bytes(); }
  std::uint64_t mean_bytes() const { return inside_.mean_bytes() + between_.mean_bytes(); }

 private:
  std::vector<DeviceLayer> uncompressed_;
  PieceTables inside_, between_, kept_;
  std::vector<std::int64_t> values_at_;
};

}  // namespace thinwire::comm
