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

  // Replaces `buffer`, of the size of the constructor, by its mean; returns the bytes sent. As
  // Reduction::run().
  std::size_t run(const ReductionContext& context, std::span<float> buffer);

 private:
  std::unique_ptr<ScatterReduce> reduce_;
};

// The codec of layers that travel as they are.
const Codec& identity_codec();

}  // namespace thinwire::comm
