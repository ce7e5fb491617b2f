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
//   2. the ranks tell each other the sizes of their frames, then send them to all (all_gather);
//   3. everyone decodes the W frames in rank order, adds them in float32 and divides by W.
//
// The result is exactly the mean of the decoded inputs. Bytes sent by a rank: (W − 1) times its
// payload, so this pays while a payload is smaller than about 2 / W of the tensor.
class GatherReduce final : public Reduction {
 public:
  explicit GatherReduce(std::span<const PartitionLayer> layers);

  void advance() override { swap_.send(kFrameHeaderBytes + most_); }
  Averaged receive() override;
  void deliver(bool keep) override;

 private:
  void begin() override;
  bool encode_layer(const LayerValues& layer, std::span<std::byte> out, std::size_t& bytes);
  void decode_mean(const LayerValues& layer, std::size_t index, bool keep, int& peer);
  void add_entries(const LayerValues& layer, bool keep) const;

  std::size_t most_ = 0;  // bytes of a payload
  std::int64_t numel_ = 0;
  FrameBuffer own_;
  bool own_finite_ = true;
  FrameSwap swap_;
  std::vector<FrameHeader> expected_;
  // By peer and layer: the bytes of the exchange in progress.
  std::vector<std::vector<std::span<const std::byte>>> parts_;
};

}  // namespace thinwire::comm
