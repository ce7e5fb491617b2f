// The mean of columns of factors in entropy-coded slots: one step for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/reduce/slot_reduce.h"

namespace thinwire::comm {

// A SlotReduce of the columns of a buffer, sorted by the size that is expected of them and cut into
// classes of equally many elements: columns of like size, of whichever matrices, share a table of
// the entropy coder. Every owner has an equal share of each class. Not thread-safe.
//
// One step for all is right where the columns' errors count alike: those of M = P Qᵀ are those of Q
// where P is orthonormal, and of P, once it is made so, where the Q that it is a product with was.
class FactorSlots {
 public:
  // A column's elements in the buffer.
  struct Column {
    std::size_t begin = 0, numel = 0;
  };
  // `codec` is ecsq(bits=F). The step is shared by all factors of that codec; `factor` tells the
  // exchanges of a training step apart, P from Q. At least one column.
  FactorSlots(std::vector<Column> columns, const Codec& codec, const Peers& peers,
              std::size_t chunk_bytes, SharedSteps& steps, std::string factor);

  // As FactorMean; `first` names the exchange, `sizes` are those expected of the columns (root mean
  // squares, equal on all ranks).
  void start(const ReductionContext& context, const LayerValues& first, std::span<float> buffer,
             std::span<float> lost, std::span<const float> sizes);
  void advance() { slots_->advance(); }
  Averaged receive() { return slots_->receive(); }
  // Writes the mean, and where that is finite what was lost.
  void deliver(bool finite);
  // The step learns from the exchange; only of steps that count.
  void commit() { slots_->report(); }

 private:
  template <typename Visit>
  void for_each_column(const Visit& visit) const;

  const std::vector<Column> columns_;
  const std::string factor_;
  std::size_t numel_ = 0;
  std::unique_ptr<SlotReduce> slots_;

  // Of the exchange in progress:
  std::vector<std::uint32_t> order_;  // of the columns
  std::string name_;
  std::span<float> buffer_, lost_;            // the caller's
  std::span<float> sorted_, lost_of_sorted_;  // the columns in order
  LayerValues whole_;
  SecondResidual of_means_;  // keeps its memory; none of it is in the next mean
  float divisor_ = 1;
};

}  // namespace thinwire::comm
