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

// One instance serves one list of layers, in the order given to the constructor: run() allocates
// nothing but what the backend does.
//
// Terms: W ranks; a *slice* is what one rank owns, the layers are cut into *chunks*,
// each into W slices.
//
//   1. every rank encodes its values slice by slice and sends slice w to rank w (all_to_all);
//   2. the owner w decodes the W payloads of its slice and adds them in rank order, in float32,
//      divides by W, encodes the mean;
//   3. the owner sends that payload to all; everyone, the owner too, decodes the same bytes.
//
// Chunks are independent, so that chunk c is encoded while chunk c − 1 is on the wire.
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

  Averaged run(const ReductionContext& context, std::span<const LayerValues> layers) override;
  void commit(std::span<const LayerValues> layers) override;
  std::vector<Piece> owned() const override;

  void set_sums_hook(SumsHook hook) { sums_hook_ = std::move(hook); }
  const Partition& partition() const { return partition_; }

 private:
  struct Chunk;

  void send_slices(const ReductionContext& context, std::span<const LayerValues> layers, int chunk);
  void reduce_own_slice(const ReductionContext& context, std::span<const LayerValues> layers,
                        int chunk);
  void receive_means(const ReductionContext& context, std::span<const LayerValues> layers,
                     int chunk);

  bool accepts_own_slice(const ReductionContext& context, int chunk);
  bool add_up(const ReductionContext& context, std::span<const LayerValues> layers, int chunk);
  void encode_mean(const ReductionContext& context, std::span<const LayerValues> layers, int chunk);
  void send_mean(const ReductionContext& context, int chunk, bool refused);

  const int rank_;
  const int world_;
  const Partition partition_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  bool finite_ = true;  // the means of the run in progress
  std::vector<float> sums_;
  SumsHook sums_hook_;
};

}  // namespace thinwire::comm
