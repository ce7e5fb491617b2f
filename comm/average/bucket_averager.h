// Averaging a bucket: several layers of one gradient buffer, each by its own codec.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/residuals.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/link/link_model.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/common/timeline.h"

namespace thinwire::comm {

// A layer's place in its bucket.
struct BucketLayer {
  std::string name;                 // the parameter's name, unique in the model
  std::int64_t offset = 0;          // first element in the buffer
  std::vector<std::int64_t> shape;  // of the parameter
  std::int64_t numel() const;
};

// A one-dimensional, contiguous buffer of gradients and the layers in it.
struct Bucket {
  std::size_t index = 0;  // for the timeline and messages
  at::Tensor buffer;      // float32, float16, bfloat16 or float64 on the CPU
  std::vector<BucketLayer> layers;
};

// Bytes of one rank, added up over calls.
struct Traffic {
  std::uint64_t sent_bytes = 0;   // what this rank handed to the network, headers included
  std::uint64_t dense_bytes = 0;  // what an uncompressed ring all-reduce would have sent
};

// What a ring all-reduce of so many bytes makes each rank send: all but its own part, twice.
std::uint64_t ring_bytes(std::int64_t bytes, int world);

// All but the timeline must be equal on all ranks.
struct AveragerOptions {
  std::uint64_t seed = 0;
  // Compare a checksum of the averaged buckets across ranks every so many steps; 0: never.
  std::int64_t check_replicas_every = 0;
  // Elements of float32 bytes that scatter_reduce codes and sends as one piece.
  std::size_t chunk_bytes = std::size_t{8} << 20;
  Timeline* timeline = nullptr;  // not owned
  // How compressed layers are averaged. Empty: what the codec was made for, or what is fastest by
  // `link`, which may also be not to compress.
  std::optional<Strategy> strategy = {};
  // The host of every rank, by any numbers; empty: all on one. See hosts_of_ranks().
  std::vector<int> host_of_rank = {};
  const LinkModel* link = nullptr;  // not owned; may be null
};

struct BucketLayout;
struct LayerGroup;
class Refusal;

// Averages buckets over the ranks of one group. Keeps what error feedback carries over and the
// messages' buffers. Not thread-safe: one communication thread owns it, and the group.
class BucketAverager {
 public:
  explicit BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                          AveragerOptions options = {});
  ~BucketAverager();

  // Replaces the buffer by its mean over the ranks, bit-identical on every rank. `plan` must be the
  // same on all ranks, `step` counts the training steps. Layers of one bucket may have different
  // codecs; they are grouped by reduction and each group makes one exchange:
  //   codecs of fixed size, by block  -> scatter_reduce (ScatterReduce)
  //   topk, ternary                   -> gather_reduce or sparse (GatherReduce, SparseReduce),
  //                                      whichever sends less
  //   randomk                         -> dense (SummableReduce)
  //   powersgd                        -> low_rank (LowRank)
  //   uncompressed                    -> with one of the others, as they are: these sum in rank
  //                                      order on every backend. One all_reduce in the buffer's own
  //                                      dtype where nothing is compressed, or the buffer is not
  //                                      float32.
  // unless the options say otherwise. Compressed layers are computed in float32, whatever the
  // buffer's dtype. The plan may change from step to step; residuals and warm starts are kept by
  // name, see Residuals.
  //
  // If any rank brings a non-finite value in a compressed layer, the layer's mean has non-finite
  // values on every rank and all that the bucket carries over stays as it was.
  //
  // Collective. Throws, on every rank: InvalidArgument when the ranks bring different layers,
  // dtypes or plans (naming the first difference), FrameError for a damaged message (with one text
  // on all ranks, naming who refused whose), CommError when a rank is gone, or fails alone (with
  // its reason). After an exception the group must not be used any more.
  void average(Bucket& bucket, const Plan& plan, std::int64_t step);

  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  const Traffic& traffic() const { return traffic_; }
  ErrorFeedback& feedback() { return residuals_.feedback; }
  const ErrorFeedback& feedback() const { return residuals_.feedback; }

  // What the next average() depends on besides its arguments; restored, it gives the same bits.
  // The same plan and world are needed for that; see merge_states() for another world.
  AveragerState state() const;
  void load_state(AveragerState state);

 private:
  BucketLayout& layout_of(const Bucket& bucket, const Plan& plan, std::int64_t step);
  [[noreturn]] void throw_difference(const Bucket& bucket, const BucketLayout& layout);
  void average_dense(const Bucket& bucket, const Plan& plan, const BucketLayout& layout,
                     std::int64_t step);
  void correct(const Bucket& bucket, const Plan& plan, BucketLayout& layout, LayerGroup& group,
               std::int64_t step);
  bool average_groups(const Bucket& bucket, const Plan& plan, BucketLayout& layout,
                      std::int64_t step, Refusal& refusal);
  void commit(const Bucket& bucket, const Plan& plan, BucketLayout& layout);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const Peers peers_;
  const AveragerOptions options_;
  Residuals residuals_;
  Traffic traffic_;
  std::uint64_t sequence_ = 0;
  // By the bucket's layers: the layouts of the last plans.
  std::map<std::uint64_t, std::vector<std::unique_ptr<BucketLayout>>> layouts_;
};

}  // namespace thinwire::comm
