// Averaging with codecs of fixed size, the reduction of the quantisers.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/comm/average/reduce/reduction.h"

namespace thinwire::comm {

// One instance serves one list of layers, in the order given to the constructor; messages and sums
// lie in the workspace.
//
// Terms: W ranks; a *slice* is what one rank owns, the layers are cut into *chunks*,
// each into W slices.
//
//   1. every rank encodes its values slice by slice and sends slice w to rank w (all_to_all);
//   2. the owner w decodes the W payloads of its slice and adds them in rank order, in float32,
//      divides by W, encodes the mean;
//   3. the owner sends that payload to all; everyone, the owner too, decodes the same bytes.
//
// Chunks are independent: chunk c + 1 is encoded while chunk c is on the wire, the own slices after
// all that travels, and the means of one
// chunk are decoded while those of the next arrive. deliver() may still wait for means, then; all
// that decides whether the step counts has been heard before.
// The result is bit-identical on all ranks and differs from the mean of the decoded inputs by the
// codec's error on that mean (step 2), which is in no rank's residual: layers with
// LayerValues::second have the owner keep it for the next mean.
// Bytes sent by a rank: about 2 (W − 1) / W of the encoded layers.
//
// An owner that refuses a frame says so in the frames that it owes the others.
class ScatterReduce final : public Reduction {
 public:
  // What an owner may do with the sums of its pieces, one piece after another in `sums`, in place
  // of dividing them.
  using SumsHook =
      std::function<void(const ReductionContext& context, int chunk, std::span<float> sums)>;

  // The layers' codecs must have fixed_size and not be null.
  ScatterReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
                std::int64_t piece = Partition::kCachedPiece);
  ~ScatterReduce() override;

  void advance() override;
  Averaged receive() override;
  void deliver(bool keep) override;
  void commit() override;
  std::size_t bytes() const override;
  std::vector<Piece> owned() const override;

  void set_sums_hook(SumsHook hook) { sums_hook_ = std::move(hook); }
  const Partition& partition() const { return partition_; }

 private:
  struct Chunk;

  void begin() override;
  void place();
  void send_slices(int chunk);
  void encode_slice(const Slice& slice, std::span<std::byte> payload);
  void reduce_own_slice(int chunk);
  bool accepts_own_slice(int chunk);
  bool add_up(int chunk);
  void encode_mean(int chunk);
  std::span<std::byte> mean_frame(Chunk& chunk) const;
  void send_mean(int chunk);
  int chunks_to_hear() const;
  bool hear(int chunk);
  void write_mean(int chunk, int owner, bool keep);
  void write_own_mean(int chunk, bool keep);
  void write_other_means(int chunk, bool keep);
  void keep_second(int chunk);
  void release();
  template <typename Wanted>
  void decode(int chunk, int owner, std::span<const std::byte> payload, const Wanted& wanted);

  const int rank_;
  const int world_;
  const Partition partition_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  // Of the run in progress:
  bool finite_ = true;            // the means that are known
  int heard_ = 0;                 // chunks whose means have come
  bool keeps_residuals_ = false;  // where the means will be
  bool second_kept_ = false;      // by deliver(), so that commit() has nothing left
  bool tells_all_ = false;        // every frame of an owner says whether all its means are finite
  SumsHook sums_hook_;
};

}  // namespace thinwire::comm
