// Averaging with codecs of fixed size, the reduction of the quantisers.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "thinwire/comm/reductions/exchange.h"
#include "thinwire/comm/reductions/partition.h"

namespace thinwire::comm {

// One instance serves one list of layers, in the order given to the constructor, and keeps the
// buffers of its messages: run() allocates nothing but what the backend does. Not thread-safe.
//
// Terms: W ranks; a *slice* is what one rank owns, the layers are cut into *chunks*,
// each into W slices.
//
//   1. every rank encodes its values slice by slice and sends slice w to rank w (all_to_all);
//   2. the owner w decodes the W payloads of its slice and adds them in rank order, in float32,
//      divides by W, encodes the mean;
//   3. the owner sends that payload to all; everyone, the owner too, decodes the same bytes.
//
// Chunks are independent, so that chunk c is encoded while chunk c − 1 is on the wire.
// The result is bit-identical on all ranks and differs from the mean of the decoded inputs by the
// codec's error on that mean (step 2), which is not part of any rank's residual.
// Bytes sent by a rank: about 2 (W − 1) / W of the encoded layers.
//
// A frame that does not fit is decoded by nobody: its receiver says so in the frames that it owes
// the others, and all ranks throw FrameError.
class ScatterReduce {
 public:
  static constexpr std::size_t kDefaultChunkBytes = std::size_t{8} << 20;

  // The layers' codecs must have fixed_size and not be null.
  ScatterReduce(std::span<const PartitionLayer> layers, int rank, int world,
                std::size_t chunk_bytes = kDefaultChunkBytes);
  ~ScatterReduce();

  // Replaces the values of all layers by their mean over the ranks. Collective.
  // Throws FrameError (see above) or CommError (a peer failed).
  void run(const Exchange& exchange, std::span<const LayerValues> layers);

  // Bytes that this rank hands to the network in one run, headers included.
  std::size_t wire_bytes() const;

 private:
  struct Chunk;

  void send_slices(const Exchange& exchange, std::span<const LayerValues> layers, int chunk);
  void reduce_own_slice(const Exchange& exchange, std::span<const LayerValues> layers, int chunk);
  void receive_means(const Exchange& exchange, std::span<const LayerValues> layers, int chunk);

  const int rank_;
  const int world_;
  const Partition partition_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<float> sums_;
};

}  // namespace thinwire::comm
