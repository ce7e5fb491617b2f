// Averaging sparse gradients where the entries of many ranks meet: owners of index ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/frames.h"
#include "thinwire/comm/average/reduce/reduction.h"
#include "thinwire/comm/wire/sparse_entries.h"

namespace thinwire::comm {

// Terms: W ranks, n elements of all layers in a row, k entries a rank; rank w owns the elements
// from ⌊n w / W⌋ to ⌊n (w + 1) / W⌋.
//
//   1. every rank picks its entries with the layers' codecs and sends each owner those of its range
//      (all_to_all);
//   2. the owner adds them in rank order, in float32, and divides by W;
//   3. the owner adds what it kept of the last means of its range and sends to all the largest of
//      the entries that are then not zero, (3/2 · W / (W − 1) − 1) times as many as the ranks sent
//      to it on average, their values as the layers' codecs store theirs. The rest, and what
//      storing lost, it keeps for the next step (SecondResidual); of layers without a second
//      residual all entries that are not zero, as float32; or all elements of its range where that
//      is smaller.
//
// Bytes sent by a rank: 3/2 of its entries on any number of ranks, 2.2 at most wherever they meet.
// Without second residuals (W − 1) / W of its entries and as much of the union of all ranks', which
// is never more than n floats; then the result is that of GatherReduce, bit for bit but for the
// sign of zeros.
//
// The codecs are those whose decoded tensors are mostly zero; see sparse_entries.h for what an
// entry costs. At most 2^32 − 1 elements.
class SparseReduce final : public Reduction {
 public:
  SparseReduce(std::span<const PartitionLayer> layers, const Peers& peers);

  void advance() override;
  Averaged receive() override;
  void deliver(bool keep) override;
  void commit() override;
  std::vector<Piece> owned() const override { return pieces_; }

 private:
  std::int64_t begin_of(int owner) const;
  std::uint64_t numel_of(int owner) const;

  void begin() override;
  void pick();
  void sort_by_owner(std::int64_t first);
  void address(int owner);
  int add_up(const ReceivedFrames& received);
  bool add_kept();
  void choose_means(bool may_keep, LayeredEntries& means);
  void end_layers(bool round, LayeredEntries& means);
  std::size_t most_means() const;
  void write_range(int owner, const SparseEntries& entries);

  const int world_;
  const int rank_;
  std::int64_t numel_ = 0;
  std::size_t most_ = 0;             // bytes of a frame
  std::size_t most_of_a_layer_ = 0;  // bytes of a codec's payload
  std::vector<FrameBuffer> to_owners_;
  FrameBuffer mean_;
  std::vector<Piece> pieces_;  // the own range by layers
  std::size_t own_entries_ = 0, own_in_range_ = 0, met_ = 0;
  std::span<float> sums_;  // of the own range, then what of their means is not sent
  int refused_ = -1;       // the rank whose entries were refused
  bool own_finite_ = true;
  FrameSwap to_owners_swap_, means_swap_;
  ReceivedFrames means_;
};

}  // namespace thinwire::comm
