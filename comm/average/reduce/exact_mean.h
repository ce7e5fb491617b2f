// The mean of a float32 buffer over the ranks, summed in rank order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "thinwire/comm/average/reduce/scatter_reduce.h"

namespace thinwire::comm {

// An all_reduce whose result does not depend on the backend: scatter_reduce without compression.
// Bytes sent by a rank: 2 (W − 1) / W of the buffer, and headers. Not thread-safe.
class ExactMean {
 public:
  ExactMean(std::int64_t numel, const Peers& peers, std::size_t chunk_bytes);

  // Replaces `buffer`, of the size of the constructor, by its mean, in the stages of a Reduction.
  // The buffer and the mean's memory live until finish() is done.
  void start(const ReductionContext& context, std::span<float> buffer);
  void advance() { reduce_->advance(); }
  // Waits and writes the mean, unless a frame was refused.
  Averaged finish();

  Averaged run(const ReductionContext& context, std::span<float> buffer) {
    start(context, buffer);
    advance();
    return finish();
  }

 private:
  std::unique_ptr<ScatterReduce> reduce_;
  LayerValues whole_;
  const Refusal* refusal_ = nullptr;
};

// The codec of layers that travel as they are.
const Codec& identity_codec();

}  // namespace thinwire::comm
