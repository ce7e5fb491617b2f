// Averaging a bucket: several layers of one gradient buffer, each by its own codec.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/reductions/plan.h"
#include "thinwire/common/timeline.h"
#include "thinwire/compressors/error_feedback.h"

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
struct WireUse {
  std::uint64_t sent_bytes = 0;   // what this rank handed to the network, headers included
  std::uint64_t dense_bytes = 0;  // what an uncompressed ring all-reduce would have sent
};

struct AveragerOptions {
  std::uint64_t seed = 0;
  // Compare a checksum of the averaged buckets across ranks every so many steps; 0: never.
  std::int64_t check_replicas_every = 0;
  // Elements of float32 bytes that scatter_reduce codes and sends as one piece.
  std::size_t chunk_bytes = std::size_t{8} << 20;
  Timeline* timeline = nullptr;  // not owned
};

// Averages buckets over the ranks of one group. Keeps the residuals of error feedback and the
// messages' buffers. Not thread-safe: one communication thread owns it, and the group.
class BucketAverager {
 public:
  explicit BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                          AveragerOptions options = {});
  ~BucketAverager();

  // Replaces the buffer by its mean over the ranks, bit-identical on every rank. `plan` must be the
  // same on all ranks, `step` counts the training steps. Layers of one bucket may have different
  // codecs; they are grouped by reduction and each group makes one exchange:
  //   codecs of fixed size        -> scatter_reduce (ScatterReduce)
  //   the others                  -> gather_reduce (GatherReduce)
  //   uncompressed                -> with scatter_reduce, as they are: its sums are in rank order
  //   on
  //                                  every backend. One all_reduce in the buffer's own dtype where
  //                                  the plan compresses nothing, or the buffer is not float32.
  // Compressed layers are computed in float32, whatever the buffer's dtype.
  //
  // If any rank brings a non-finite value in a compressed layer, the layer's mean has non-finite
  // values on every rank and all residuals of the bucket stay as they were.
  //
  // Collective. Throws, on every rank: InvalidArgument when the ranks bring different layers,
  // dtypes or plans (naming the first difference), FrameError for a damaged message, CommError when
  // a rank is gone. After an exception the group must not be used any more.
  void average(Bucket& bucket, const Plan& plan, std::int64_t step);

  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  const WireUse& wire_use() const { return wire_use_; }
  ErrorFeedback& feedback() { return feedback_; }
  const ErrorFeedback& feedback() const { return feedback_; }

 private:
  struct Layout;

  Layout& layout_of(const Bucket& bucket, const Plan& plan);
  void check_same_everywhere(const Bucket& bucket, const Layout& layout);
  void average_dense(const Bucket& bucket, const Layout& layout);
  void average_compressed(const Bucket& bucket, const Plan& plan, Layout& layout,
                          std::int64_t step);
  void check_replicas(const Bucket& bucket, std::int64_t step);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  AveragerOptions options_;
  ErrorFeedback feedback_;
  WireUse wire_use_;
  std::uint64_t sequence_ = 0;
  std::map<std::string, std::unique_ptr<Layout>, std::less<>> layouts_;
};

}  // namespace thinwire::comm
