// Averaging with entropy-coded slots: one step for all layers, bits where they lower the error
// most.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/reduce/owner_slices.h"
#include "thinwire/comm/average/reduce/reduction.h"
#include "thinwire/compressors/kernels/slot_task.h"

namespace thinwire::comm {

// The exchange is that of ScatterReduce, with its terms: slices go to their owners, who add them up
// in rank order and send the mean to all, encoded once more. What differs is the coding:
//
//   A slice is encoded as a whole, with a part for each piece of a layer (entropy/step_coder.h) and
//   one step for all of them, that of SharedSteps. Its message is a slot, whose size all ranks
//   derive from what the last training step took; a slice that would take more is coded coarser,
//   and what that loses is in the residual as everything else.
//   An owner's message says what the slices and its mean would have taken, so that every rank knows
//   what everything took when the exchange is over.
//
// In the first training step there is no step yet: every rank takes one that fits its own values,
// of all layers together.
//
//   slot to an owner   u32 bytes wanted · f32 error ratio · payload
//   slot to all        the same of the mean · u32, f32, f32 averages over the ranks of the bytes
//                      wanted, the error ratio and log2 of the step of the slots to this owner ·
//                      payload
//
// Bytes sent by a rank: 2 (W − 1) / W of the bits of the spec, where the goal is bits.
class SlotReduce final : public Reduction {
 public:
  // All layers have one ecsq codec. `steps` outlives the object.
  SlotReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
             SharedSteps& steps);
  // The same with slices by chunk and owner that are cut already; their pieces are the parts. The
  // step is the one called `shared`, as a rule the codec's spec.
  SlotReduce(std::vector<std::vector<Slice>> slices, const Codec& codec, const Peers& peers,
             SharedSteps& steps, std::string shared);
  ~SlotReduce() override;

  void advance() override;
  Averaged receive() override;
  void deliver(bool keep) override;
  void commit() override {
    store_losses();
    report();
  }
  std::size_t bytes() const override;
  std::vector<Piece> owned() const override;

  // The two halves of commit(): what encoding the own means lost becomes LayerValues::second, and
  // the step learns what the slots took.
  void store_losses();
  void report();

  // For the same exchange in GPU memory (device/device_slots.h). By chunk and owner.
  const std::vector<std::vector<Slice>>& slices() const { return slices_; }
  const Codec& codec() const { return codec_; }
  const EcsqOptions& options() const { return options_; }
  const std::string& shared() const { return shared_; }  // what its step is called
  SharedSteps& steps() const { return steps_; }
  // What an exchange of this group (its first layer's name) does in a training step.
  SharedSteps::Use use_of_steps(const std::string& group, std::int64_t step) const;

 private:
  struct Chunk;

  void begin() override;
  void find_steps();
  void place();
  void send_slices(int chunk);
  void reduce_own_slice(int chunk);
  bool add_up(int chunk);
  void encode_mean(int chunk);
  void send_mean(int chunk);
  bool hear(int chunk);
  void write_means(int chunk, bool keep);
  void note_taken(int chunk, int owner, std::span<const std::byte> slot);
  std::size_t slot_bytes(int chunk, int owner, std::size_t leg) const;
  std::size_t place_of(int chunk, int owner) const {
    return static_cast<std::size_t>(chunk) * static_cast<std::size_t>(world_) +
           static_cast<std::size_t>(owner);
  }
  int chunks() const { return static_cast<int>(slices_.size()); }
  const Slice& slice(int chunk, int owner) const {
    return slices_[static_cast<std::size_t>(chunk)][static_cast<std::size_t>(owner)];
  }

  const int rank_;
  const int world_;
  const Codec& codec_;
  const EcsqOptions& options_;
  const std::string shared_;
  SharedSteps& steps_;
  std::vector<std::vector<Slice>> slices_;
  std::int64_t numel_ = 0;
  std::vector<std::unique_ptr<Chunk>> chunks_;

  // Of the exchange in progress:
  SharedSteps::Use use_;
  std::string group_;
  // Of the last slice of a chunk, its step over the shared one: the slices of the next chunk are of
  // the same gradient and begin there.
  float begin_ = 1;
  bool finite_ = true;                         // the means that are known
  int heard_ = 0;                              // chunks whose means have come
  bool keeps_residuals_ = false;               // where the means will be
  std::vector<kernels::MeanPrefix> prefixes_;  // of all chunks, owner by owner: place_of()
};

}  // namespace thinwire::comm
