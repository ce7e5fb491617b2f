// A causal transformer over bytes whose feed-forward layers are mixtures of experts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn.h>

#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::examples {

struct LanguageModelOptions {
  std::int64_t layers = 2;
  std::int64_t dim = 128;
  std::int64_t heads = 4;
  std::int64_t context = 128;
  // Of every mixture; its width, number of the layer and seed are filled in.
  moe::MoEOptions moe;
  std::uint64_t seed = 1;
};

class TransformerBlock;

// The mixtures are ordinary children: data-parallel training knows by itself which parameters are
// experts of this rank alone.
class MoELanguageModel : public torch::nn::Module {
 public:
  // `group`: over which the experts are spread. Collective.
  MoELanguageModel(const LanguageModelOptions& options,
                   const c10::intrusive_ptr<c10d::ProcessGroup>& group);

  // bytes: [B, T] int64, T at most the context -> logits [B, T, 256] and the weighted sum of the
  // mixtures' losses, a scalar. Collective, and so is the backward pass.
  std::pair<torch::Tensor, torch::Tensor> forward(const torch::Tensor& bytes);

  const std::vector<std::shared_ptr<moe::MoELayer>>& mixtures() const { return mixtures_; }
  // What all mixtures did on this rank.
  moe::MoESummary summary() const;

  // This rank's weights under their names in a state, sharing memory.
  NamedTensors weights() const;
  // This rank's part of full_state(): the states of all ranks merge into it (merge_states()).
  NamedTensors local_state() const;
  // All weights, every rank's experts included, and what the mixtures keep for merging and coding
  // rows; fits any number of ranks. Collective; equal on all ranks.
  NamedTensors full_state() const;
  // How rows are merged stays what this model's options say. Throws InvalidArgument for a missing
  // tensor or a shape that does not fit.
  void load_state(const NamedTensors& state);

 private:
  // All but the mixtures', under their names in a state.
  std::vector<std::pair<std::string, torch::Tensor>> own_parameters() const;
  // Those, and of each mixture what a member function of it gives.
  NamedTensors gather(NamedTensors (moe::MoELayer::*of_mixture)() const) const;

  LanguageModelOptions options_;
  torch::nn::Embedding token_{nullptr}, position_{nullptr};
  std::vector<std::shared_ptr<TransformerBlock>> blocks_;
  std::vector<std::shared_ptr<moe::MoELayer>> mixtures_;
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
};

}  // namespace thinwire::examples
