// The tables by which kernels average layers in entropy-coded slots
// (compressors/kernels/slot_task.h), where messages and codes lie, and what an exchange reports.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include "thinwire/comm/average/device/piece_tables.h"
#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/reduce/scatter_frames.h"
#include "thinwire/comm/average/reduce/slot_reduce.h"
#include "thinwire/compressors/kernels/slot_task.h"

namespace thinwire::comm {

// One chunk's part of an exchange of slots. Places and sizes are bytes of the workspace, and those
// of messages change with every exchange.
struct SlotChunk {
  TileRun tiles, own;  // all, and those of this rank's slice
  std::int64_t sent_at = 0, received_at = 0, made_at = 0, arrived_at = 0;
  std::vector<std::int64_t> sent_sizes, received_sizes;  // by rank
  std::int64_t own_size = 0;                             // of each frame that is received
  std::int64_t mean_size = 0;                            // the largest frame of any
  FrameRun sent;
  // The frames of this rank's slice from all ranks, and then that of its mean.
  FrameRun reduced;
  // In the tables of slots: those to the owners, that of the mean of the own slice, and those that
  // are received; and of slots to be written the first to an owner, behind which that of the mean
  // is. Empty slices have none.
  std::uint32_t writes = 0, first_write = 0, mean = 0, first_received = 0, first_code = 0;
};

// Made once a layout and for the residuals of then, as PieceTables; the sizes of slots are those of
// the exchange, by which the tables are made anew for each. Not thread-safe.
class SlotTables {
 public:
  // Queues the copy of the tables that stay on the current stream, and waits for it. The layers are
  // those of `reduction`, which lives as long as exchanges are made, and whose steps outlive the
  // object.
  SlotTables(std::span<const DeviceLayer> layers, const SlotReduce& reduction, int rank, int world,
             at::Device device, DeviceMemory& memory);

  const SlotReduce& reduction() const { return reduction_; }
  // The name of the first layer, by which its steps are known.
  const std::string& group() const { return group_; }

  // Finds places for the messages of an exchange; then makes its tables for memory of so many
  // bytes, and queues their copy on the current stream. Waits only where the copy of the exchange
  // before is still to come.
  void place(const SharedSteps::Use& use);
  std::int64_t workspace_bytes() const { return workspace_; }
  std::int64_t scratch_bytes() const { return scratch_; }
  void fill(std::byte* workspace, std::byte* scratch);

  const std::vector<SlotChunk>& chunks() const { return chunks_; }
  TileRun tiles() const { return {0, tiles_}; }
  FrameRun means() const { return means_; }
  // The slots of all means, and where they are in the table of slots.
  std::uint32_t mean_slots() const { return mean_slots_; }
  std::uint32_t first_mean() const { return first_mean_; }
  std::int64_t own_elements() const { return own_; }
  std::uint32_t most_segments() const { return most_segments_; }
  std::uint32_t piece_count() const { return piece_count_; }
  std::uint32_t layer_count() const { return layer_count_; }

  // On the device.
  const kernels::DevicePiece* pieces() const;
  const kernels::LayerTiles* layers() const;
  const kernels::SlotCode* codes(std::uint32_t first) const;
  const kernels::Slot* slots(std::uint32_t first) const;
  const kernels::DeviceFrame* frames(const FrameRun& run) const;
  // Of the slots of the own slice of a chunk, and of all means.
  const kernels::ReadState* states_of_received(const SlotChunk& chunk) const;
  const kernels::ReadState* states_of_means() const;

  // Where kernels put what the exchange took (SlotPass::kReport). report() queues its copy to the
  // host on the current stream; learn() tells the shared steps if the exchange counts, waiting for
  // the copy where it is not there yet.
  kernels::MeanPrefix* report_memory() const;
  void report();
  void learn();

  // As PieceTables'. Bytes are those of the last exchange that was placed.
  bool pays_back() const { return pays_back_; }
  std::uint64_t memory_version() const { return memory_version_; }
  std::uint64_t sent_bytes() const { return sent_bytes_; }
  std::uint64_t mean_bytes() const { return mean_bytes_; }

 private:
  struct Maker;
  // Offsets in the scratch memory of what belongs to a slot.
  struct Scratch {
    std::int64_t read = 0, symbols = 0, before = 0, excess = 0, state = 0;
    std::int64_t coded = 0, groups = 0, sample = 0;
  };
  // What of a slice never changes.
  struct Shape {
    std::uint32_t first_part = 0, parts = 0, own_part = 0, tiles = 0, sample_tiles = 0;
    std::uint64_t first_tile = 0, numel = 0, sample_numel = 0;  // 0: not sampled
    Scratch codes, mean;            // as it is written, and as its mean is read
    std::vector<Scratch> received;  // of own slices, by rank
  };
  const Slice& slice(int chunk, int owner) const;
  Shape& shape(int chunk, int owner);
  void add_frame(FrameRun& run, int chunk, int owner, std::int64_t offset, int sender, Leg leg);
  kernels::Slot slot_of(const Shape& shape, const Scratch& scratch, std::int64_t frame, Leg leg,
                        std::uint64_t bytes, std::uint64_t first_tile) const;
  kernels::SlotCode code_of(const Shape& shape, const kernels::Slot& slot) const;
  void fill_slots(int chunk);

  const SlotReduce& reduction_;
  // What learn() needs of it.
  const std::vector<std::vector<Slice>> slices_;
  const std::string shared_;
  SharedSteps& steps_;
  const int rank_, world_;
  std::string group_;
  std::vector<SlotChunk> chunks_;
  std::vector<std::vector<Shape>> shapes_;                           // by chunk and owner
  std::vector<std::vector<std::array<std::size_t, 2>>> slot_bytes_;  // of the exchange, by leg
  FrameRun means_;
  std::uint64_t tiles_ = 0;
  std::uint32_t piece_count_ = 0, layer_count_ = 0, mean_slots_ = 0, most_segments_ = 0;
  std::uint32_t codes_total_ = 0, slots_total_ = 0, first_mean_ = 0;
  std::int64_t workspace_ = 0, scratch_ = 0, own_ = 0, mean_states_ = 0;
  std::vector<std::int64_t> received_states_;  // by chunk
  bool pays_back_ = false, reported_ = false;
  std::uint64_t memory_version_ = 0, sent_bytes_ = 0, mean_bytes_ = 0;

  // On the host, while they are made.
  std::vector<kernels::SlotCode> codes_;
  std::vector<kernels::Slot> slots_;
  std::vector<kernels::DeviceFrame> frames_;
  std::byte* workspace_at_ = nullptr;
  std::byte* scratch_at_ = nullptr;
  // Bytes; all of the exchange's tables lie in one, first the codes.
  at::Tensor pieces_, parts_, own_parts_, sampled_, layers_;
  at::Tensor made_, pinned_, report_, pinned_report_;
  std::optional<c10::Event> copied_, report_copied_;
  std::vector<at::Tensor> held_;  // whose addresses the pieces have
};

}  // namespace thinwire::comm
