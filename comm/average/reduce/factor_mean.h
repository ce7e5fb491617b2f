// The mean of factors, each coded as its layer wants it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/reduce/scatter_reduce.h"

namespace thinwire::comm {

// A scatter_reduce of parts of one buffer, in rank order. What coding loses on the way, a rank's
// own values as well as the means that it owns, is given back, so that the mean of what the ranks
// are then taken to have sent is the mean that all received, exactly as with float32. Not
// thread-safe.
class FactorMean {
 public:
  // Codecs of fixed size; they live as long as the object.
  FactorMean(std::span<const PartitionLayer> parts, const Peers& peers, std::size_t chunk_bytes);

  // Replaces `buffer`, the parts in a row, by its mean, in the stages of a Reduction; `layers` name
  // the parts. `lost`, empty or of the same size, receives what this rank's values are less than
  // what counts as sent: its loss of coding, and W times that of the means that it owns. Undefined
  // where the mean is not finite. All memory lives until finish() is done.
  void start(const ReductionContext& context, std::span<const LayerValues* const> layers,
             std::span<float> buffer, std::span<float> lost);
  void advance() { reduce_->advance(); }
  // Waits and writes the mean, unless a frame was refused.
  Averaged finish();
  const Partition& partition() const { return reduce_->partition(); }

 private:
  const std::vector<PartitionLayer> parts_;
  std::unique_ptr<ScatterReduce> reduce_;
  std::vector<LayerValues> values_;
  SecondResidual of_means_;
  const Refusal* refusal_ = nullptr;
  float divisor_ = 1;
};

}  // namespace thinwire::comm
