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

// Layers of a bucket that share a reduction, and so an exchange.
struct LayerGroup {
  std::unique_ptr<Reduction> reduction;
  std::vector<std::size_t> layers;  // of the bucket
  std::vector<LayerValues> values;  // of the run in progress
};

struct BucketLayout {
  std::uint64_t key = 0;  // of the plan and the stage of its ramps
  std::string text;       // what the ranks must agree on
  std::uint64_t hash = 0;

  struct Layer {
    std::uint32_t id = 0;
    CodecPtr codec;                // of this stage; null: uncompressed
    std::vector<float> converted;  // float32 copy, where the buffer is not
    std::vector<float> residual;   // the new one, until it is committed
    bool residual_finite = true;
    std::vector<SecondResidual::Extent> owned;
  };
  std::vector<Layer> layers;
  std::vector<LayerGroup> groups;

  std::vector<std::size_t> dense;  // layers that one all_reduce averages in the buffer's type
  at::Tensor dense_buffer;         // defined where these are not the whole bucket
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

std::unique_ptr<BucketLayout> make_layout(const Bucket& bucket, const Plan& plan, std::int64_t step,
                                          const AveragerOptions& options, c10d::ProcessGroup& group,
                                          const Peers& peers, WarmStarts& warm_starts);

}  // namespace thinwire::comm
