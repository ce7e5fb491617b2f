// Averaging with entropy-coded slots in bases that follow the gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "thinwire/comm/average/memory/layer_bases.h"
#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/reduce/class_layout.h"
#include "thinwire/comm/average/reduce/slot_reduce.h"

namespace thinwire::comm {

// What it keeps from step to step, all of which outlives the reduction.
struct SpectralMemory {
  SharedSteps& steps;
  LayerBases& bases;
  SecondResidual& second;
};

// SlotReduce of one array into which all layers are put, turned into their bases and sorted by
// classes of predicted size (class_layout.h): rotations do not change what a mean is, nor what a
// squared error is, so owners add up, encode and keep residuals without knowing of bases. Each rank
// turns the decoded means out of them.
//
// Every basis learns from these means, which are bit-equal on all ranks, and so is what is learned:
// nothing of it travels. It is refreshed after every `every` steps of the layer, and before that
// after 1, 2, 4, 8, …; the layer's residual is turned then, and second residuals of all layers
// become part of the first one (bring_out_of()), for other ranks own those coefficients now.
class SpectralReduce final : public Reduction {
 public:
  // All layers have one spectral codec.
  SpectralReduce(std::span<const PartitionLayer> layers, const Peers& peers, int chunks,
                 const SpectralMemory& memory);
  ~SpectralReduce() override;

  void advance() override { slots_->advance(); }
  Averaged receive() override { return slots_->receive(); }
  void deliver(bool keep) override;
  void commit() override;
  std::size_t bytes() const override;
  bool uses_bases() const override { return true; }

 private:
  // The levels of which the layout was made.
  struct Levels {
    std::vector<std::uint16_t> rows, columns;
  };

  void begin() override;
  LayerBasis& basis_of(const LayerValues& layer);
  void place_layers(std::span<LayerBasis* const> bases);
  void bring_residuals(std::span<LayerBasis* const> bases);
  void load_second();
  void store_second();
  void refresh(std::span<LayerBasis* const> bases);
  bool is_due(const spectral::MatrixBasis& basis) const;
  RandomKey key_of(const LayerValues& layer, std::int64_t steps) const;

  const Peers& peers_;
  const Codec& codec_;
  const BasisOptions options_;
  const int chunks_;
  const std::int64_t numel_;
  SpectralMemory memory_;

  // Made anew whenever a basis is.
  std::vector<Levels> levels_;
  ClassLayout layout_;
  std::vector<std::vector<SecondResidual::Extent>> owned_;  // by layer, in order
  std::unique_ptr<SlotReduce> slots_;
  SecondResidual second_;  // of the array, for slots_

  // Of the exchange in progress:
  std::span<float> array_;
  std::vector<float> part_;
  bool array_finite_ = true;
  LayerValues whole_;
};

}  // namespace thinwire::comm
