// What all reductions have in common.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/comm/average/reduce/reduction_context.h"

namespace thinwire::comm {

struct Averaged {
  std::size_t sent = 0;   // bytes that this rank handed to the network, headers included
  std::size_t means = 0;  // of these, what owners sent back
  bool finite = true;     // what all ranks brought, and all means; the same on all ranks

  // Counts the messages of `other`, too.
  void add_bytes(const Averaged& other) {
    sent += other.sent;
    means += other.means;
  }
};

// A way to average a list of layers, given at construction, over the ranks. Not thread-safe, and
// one exchange at a time.
//
// An exchange has four stages, so that another bucket can be worked on while this one's messages
// travel. start() and advance() post all collectives, in an order that depends on the layout alone;
// receive() and deliver() post none, so that ranks may come to them at different times.
//
// The memory of a layer's values holds, one after another, the gradient, then what encoding it lost
// (where a residual is kept), then the mean: no rank needs more than the residuals themselves. So
// a mean may be written only when it is known whether the step counts.
class Reduction {
 public:
  virtual ~Reduction() = default;

  // Encodes and posts the first messages. `layers` are those of the constructor and live, as what
  // the context points to, until deliver() and commit() are done. Collective.
  void start(const ReductionContext& context, std::span<const LayerValues> layers) {
    context_ = context;
    layers_ = layers;
    begin();
  }
  // Posts all messages that are left. Collective. Throws CommError when a peer failed.
  virtual void advance() = 0;
  // Waits for the messages that decide whether the step counts, usually the last ones. A frame that
  // does not fit is decoded by nobody and noted in context.refusal; Averaged::finite is then
  // undefined. Throws CommError when a peer failed.
  virtual Averaged receive() = 0;
  // Replaces the values of all layers by their mean over the ranks, bit-identical on all of them; a
  // value that is not finite on any rank makes the layer's mean non-finite. With `keep`, which says
  // that commit() follows, each layer's loss moves to LayerValues::kept before, and what else is to
  // be stored may be stored while messages come. Only where no frame was refused. Means that were
  // not needed to decide are waited for here: a frame among them may still be refused, and then
  // what is kept is undefined, too.
  virtual void deliver(bool keep) = 0;

  // Stores what the exchange learned for the next step (warm starts, second residuals). Called only
  // if all means were finite, on all ranks or on none.
  virtual void commit() {}

  // All four stages, for an exchange within another one, which decides what is kept: that is left
  // to commit(). The values are undefined where a frame was refused.
  Averaged run(const ReductionContext& context, std::span<const LayerValues> layers) {
    start(context, layers);
    advance();
    const Averaged averaged = receive();
    if (!context_.refusal->any()) deliver(/*keep=*/false);
    return averaged;
  }

  // About the bytes that it holds between exchanges.
  virtual std::size_t bytes() const { return 0; }

  // Whether its layers' residuals are held in bases (memory/layer_bases.h), where feedback is on.
  virtual bool uses_bases() const { return false; }

  // The elements whose second residual this rank keeps; Piece::layer counts within the layers.
  virtual std::vector<Piece> owned() const { return {}; }

 protected:
  virtual void begin() = 0;

  ReductionContext context_;
  std::span<const LayerValues> layers_;
};

}  // namespace thinwire::comm
