// Averaging with codecs whose payloads vary in size: everyone gets everyone's payload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/frames.h"
#include "thinwire/comm/average/reduce/reduction.h"

namespace thinwire::comm {

//   1. every rank encodes its layers, one after another, into one frame;
//   2. the ranks tell each other the sizes of their frames, then send them to all (all_to_all);
//   3. everyone decodes the W frames in rank order, adds them in float32 and divides by W.
//
// The result is exactly the mean of the decoded inputs. Bytes sent by a rank: (W − 1) times its
// payload, so this pays while a payload is smaller than about 2 / W of the tensor.
class GatherReduce final : public Reduction {
 public:
  explicit GatherReduce(std::span<const PartitionLayer> layers);

  Averaged run(const ReductionContext& context, std::span<const LayerValues> layers) override;

 private:
  void encode(const ReductionContext& context, std::span<const LayerValues> layers);
  bool decode_mean(const ReductionContext& context, std::span<const LayerValues> layers,
                   const ReceivedFrames& received);
  bool add_entries(const ReductionContext& context, std::span<float> values) const;

  std::size_t most_ = 0;  // bytes of a payload
  std::int64_t numel_ = 0;
  FrameBuffer own_;
  std::vector<SparseEntries> entries_;  // by peer, of the layer being averaged
};

}  // namespace thinwire::comm
