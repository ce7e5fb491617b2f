// Averaging with codecs whose payloads vary in size: everyone gets everyone's payload.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "thinwire/comm/reductions/exchange.h"

namespace thinwire::comm {

// One instance serves one list of layers and keeps its buffers. Not thread-safe.
//
//   1. every rank encodes its layers, one after another, into one frame;
//   2. the ranks tell each other the sizes of their frames, then send them to all (all_to_all);
//   3. everyone decodes the W frames in rank order, adds them in float32 and divides by W.
//
// The result is bit-identical on all ranks and exactly the mean of the decoded inputs. Bytes sent
// by a rank: (W − 1) times its payload, so this pays while a payload is smaller than about 2 / W of
// the tensor. A frame that does not fit is decoded by nobody; its receivers throw FrameError.
class GatherReduce {
 public:
  GatherReduce(std::span<const LayerValues> layers, int rank, int world);

  // Replaces the values of all layers by their mean over the ranks; returns the bytes that this
  // rank handed to the network, headers included. Collective. Throws FrameError or CommError (a
  // peer failed).
  std::size_t run(const Exchange& exchange, std::span<const LayerValues> layers);

 private:
  void decode_mean(const Exchange& exchange, std::span<const LayerValues> layers,
                   const std::vector<std::span<const std::byte>>& payloads);

  const int rank_;
  const int world_;
  std::vector<std::byte> own_;
  std::vector<std::size_t> layer_bytes_;
};

}  // namespace thinwire::comm
