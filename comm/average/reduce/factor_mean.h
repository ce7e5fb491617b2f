// The mean of factors, each coded as its layer wants it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/reduce/factor_slots.h"
#include "thinwire/comm/average/reduce/scatter_reduce.h"

namespace thinwire::comm {

// A part of the buffer: columns of equal length, one after another.
struct FactorPart {
  std::int64_t numel = 0;
  const Codec* codec = nullptr;
  std::int64_t columns = 1;
};

// A scatter_reduce of parts of one buffer, in rank order; parts with one step for all (ecsq) go by
// slots (factor_slots.h). What coding loses on the way, a rank's own values as well as the means
// that it owns, is given back, so that the mean of what the ranks are then taken to have sent is
// the mean that all received, exactly as with float32. Not thread-safe.
class FactorMean {
 public:
  // Codecs of fixed size, of which at most one has_one_step(); they live as long as the object, as
  // do the steps. `factor` names the exchange among those of a training step.
  FactorMean(std::span<const FactorPart> parts, const Peers& peers, std::size_t chunk_bytes,
             SharedSteps& steps, const std::string& factor);

  // Replaces `buffer`, the parts in a row, by its mean, in the stages of a Reduction; `layers` name
  // the parts. `lost`, empty or of the same size, receives what this rank's values are less than
  // what counts as sent: its loss of coding, and W times that of the means that it owns. `sizes`:
  // what is expected of the columns of parts with one step, see FactorSlots. Undefined where the
  // mean is not finite. All memory lives until finish() is done.
  void start(const ReductionContext& context, std::span<const LayerValues* const> layers,
             std::span<float> buffer, std::span<float> lost, std::span<const float> sizes);
  void advance();
  // Waits and writes the mean, unless a frame was refused.
  Averaged finish();
  // Only of steps that count.
  void commit();
  // Of parts that do not go by slots, which are all where the parts are in GPU memory.
  const Partition& partition() const { return reduce_->partition(); }

 private:
  // Where a part lies in the buffer.
  struct Place {
    std::size_t part = 0, begin = 0;
  };

  std::vector<PartitionLayer> cut_;  // what scatter_reduce averages
  std::vector<Place> places_;        // of these
  std::size_t first_in_slots_ = 0;   // the part that names their exchange
  std::unique_ptr<ScatterReduce> reduce_;
  std::unique_ptr<FactorSlots> slots_;
  std::vector<LayerValues> values_;
  SecondResidual of_means_;
  const Refusal* refusal_ = nullptr;
  float divisor_ = 1;
};

}  // namespace thinwire::comm
