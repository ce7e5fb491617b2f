// What all reductions have in common.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/comm/average/reduce/reduction_context.h"

namespace thinwire::comm {

struct Averaged {
  std::size_t sent = 0;  // bytes that this rank handed to the network, headers included
  bool finite = true;    // all means; the same on all ranks
};

// A way to average a list of layers, given at construction, over the ranks. One instance keeps the
// buffers of its messages. Not thread-safe.
class Reduction {
 public:
  virtual ~Reduction() = default;

  // Replaces the values of all layers by their mean over the ranks, bit-identical on all of them;
  // a value that is not finite on any rank makes the layer's mean non-finite. `layers` are those of
  // the constructor.
  //
  // Collective. A frame that does not fit is decoded by nobody and noted in exchange.refusal; the
  // values and Averaged::finite are then undefined. Throws CommError when a peer failed.
  virtual Averaged run(const ReductionContext& context, std::span<const LayerValues> layers) = 0;

  // Stores what the last run() learned for the next step (warm starts, second residuals). Called
  // only if all means were finite, on all ranks or on none.
  virtual void commit(std::span<const LayerValues> /*layers*/) {}

  // The elements whose second residual this rank keeps; Piece::layer counts within the layers.
  virtual std::vector<Piece> owned() const { return {}; }
};

}  // namespace thinwire::comm
