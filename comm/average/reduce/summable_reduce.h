// Averaging codecs whose payloads can be added: the payloads themselves ride on an all_reduce.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/reduction.h"

namespace thinwire::comm {

// Every rank encodes its layers; the payloads, float32 numbers of which all ranks have equally
// many, are averaged in one exact all_reduce and decoded once. The result is the mean of the
// decoded inputs but for the order of rounding. Bytes sent by a rank: 2 (W − 1) / W of its payload.
class SummableReduce final : public Reduction {
 public:
  // The layers' codecs are summable.
  SummableReduce(std::span<const PartitionLayer> layers, const Peers& peers,
                 std::size_t chunk_bytes);

  void advance() override { mean_.advance(); }
  Averaged receive() override;
  void deliver(bool keep) override;

 private:
  void begin() override;

  std::vector<std::size_t> floats_;  // of every layer's payload
  std::size_t total_ = 0;
  std::span<float> payload_;  // of the exchange in progress
  ExactMean mean_;
};

}  // namespace thinwire::comm
