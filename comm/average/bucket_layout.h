// What is derived once from the layers of a bucket and their settings.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/reduce/reduction.h"
#include "thinwire/comm/average/selector.h"

namespace thinwire::comm {

class HierarchicalTables;
class LowRankTables;
class PieceTables;
class SlotTables;
class SparseTables;

// Layers of a bucket that share a reduction, and so an exchange.
struct LayerGroup {
  std::unique_ptr<Reduction> reduction;
  std::vector<std::size_t> layers;  // of the bucket
};

struct BucketLayout {
  std::uint64_t key = 0;  // of the plan and the stage of its ramps
  std::string text;       // what the ranks must agree on
  std::uint64_t hash = 0;
  // Hashes of the layouts after which the ranks have agreed to come to this one.
  std::vector<std::uint64_t> agreed_after;

  struct Layer {
    std::uint32_t id = 0;
    CodecPtr codec;                             // of this stage; null: uncompressed
    LayerSetting setting;                       // a copy: plans change while a bucket is on its way
    std::vector<SecondResidual::Extent> owned;  // in order
    bool in_basis = false;                      // see Residuals::Way

    Residuals::Way way() const { return {codec != nullptr, in_basis, owned}; }
    bool keeps_second() const { return in_basis ? setting.uses_second_residual() : !owned.empty(); }
  };
  std::vector<Layer> layers;
  std::vector<LayerGroup> groups;
  bool compresses = false;         // any layer has a codec
  std::vector<std::size_t> dense;  // layers that one all_reduce averages in the buffer's type
  // Of a bucket in GPU memory, once it has come.
  std::shared_ptr<PieceTables> tables;
  std::shared_ptr<HierarchicalTables> hierarchical_tables;
  std::shared_ptr<SparseTables> chosen_tables, drawn_tables;
  std::vector<std::shared_ptr<LowRankTables>> factor_tables;  // by group
  std::vector<std::shared_ptr<SlotTables>> slot_tables;       // by group

  // About what it holds.
  std::size_t bytes() const;
};

// How each layer of a bucket is averaged: Strategy::kDense with a null codec for "uncompressed".
struct LayerStrategy {
  CodecPtr codec;
  Strategy strategy = Strategy::kDense;
};

// A pure function of arguments that are equal on all ranks: by the strategy that the options name,
// else by the link model, else by the kind of the codec. Throws InvalidArgument where the named
// strategy cannot average a layer's codec.
std::vector<LayerStrategy> choose_strategies(const Bucket& bucket, const Plan& plan,
                                             std::int64_t step, const AveragerOptions& options,
                                             const std::string& backend, int world);

// What the ranks must agree on before they average the bucket, and how it is done.
struct LayoutText {
  std::vector<LayerStrategy> strategies;
  std::string text;
  std::uint64_t hash = 0;
};
LayoutText describe(const Bucket& bucket, const Plan& plan, std::int64_t step,
                    const AveragerOptions& options, c10d::ProcessGroup& group);

std::shared_ptr<BucketLayout> make_layout(const Bucket& bucket, const Plan& plan, LayoutText text,
                                          const AveragerOptions& options, c10d::ProcessGroup& group,
                                          const Peers& peers, Residuals& residuals);

// A layer's elements in the buffer.
at::Tensor gradient_of(const Bucket& bucket, std::size_t i);

}  // namespace thinwire::comm
