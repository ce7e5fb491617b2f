// Low-rank adapters for the Linear and Conv2d modules of any torch::nn module tree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include "thinwire/torch_ext/adapter/adapter_state.h"
#include "thinwire/torch_ext/model/frozen_base.h"

namespace thinwire {

struct LoraOptions {
  std::int64_t rank = 8;
  double alpha = 16;
  bool rslora = false;  // scale alpha / sqrt(rank) in place of alpha / rank
  // Which Linear and Conv2d modules, by their path in the tree ("layers.1"); '*' matches any text,
  // '?' one character.
  std::vector<std::string> target_modules = {"*"};
};

// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. Freezes the base and
// gives every target module the weight
//
//   W' = W + scale * B A        Linear: A [r, in], B [out, r]; Conv2d: A [r, in, kh, kw], B [out,
//   r,
//                               1, 1]; A drawn as PEFT draws it, B zero at first
//
// torch::nn modules have no hooks and their forward() is not virtual, so a wrapped module cannot
// take their place: instead the `weight` member of the module itself becomes W', a tensor with a
// graph that leads to A and B. It works wherever the module stands and costs r/batch of a full
// gradient more than activations through A and B would; for the usual small r that is little.
//
//   auto lora = std::make_shared<thinwire::Lora>(net.ptr(), thinwire::LoraOptions{.rank = 4});
//   torch::optim::AdamW optimizer(lora->parameters(), 1e-3);
//   torch::cross_entropy_loss(lora->forward(net, images), labels).backward();
//
// The parameters of this module are the factors, under PEFT's names ("layers.1.lora_A.weight"),
// float32, on the device of the weights; the base's own parameters, W among them, are what they
// were. A module that is registered twice, or a weight that several modules share, gets one
// adapter, under its first name. One Lora at a time may stand on a base; the destructor (or
// unmerging and destroying) leaves the base as it was before. Not thread-safe.
class Lora : public torch::nn::Module, public StandsOnBase {
 public:
  // Throws InvalidArgument for a rank or alpha that is not positive, a pattern that matches no
  // Linear or Conv2d, or a Conv2d with groups.
  Lora(std::shared_ptr<torch::nn::Module> base, LoraOptions options = {});
  // On the modules that the adapter names, with its factors and scale. Throws InvalidArgument for
  // an adapter that is not LoRA or has what this class does not (DoRA, biases, alpha_pattern,
  // modules_to_save), for one whose initialisation changed the base (init_lora_weights = pissa,
  // olora and others: its factors mean nothing on this one), for a factor without its module or its
  // other half, and for wrong shapes.
  Lora(std::shared_ptr<torch::nn::Module> base, const AdapterState& adapter);
  ~Lora() override;

  // Forms W' from the factors as they are now. Needed before every forward of the base that follows
  // a change of the factors or a backward; forward() does it.
  void refresh();
  template <typename BaseModule, typename... Args>
  auto forward(BaseModule& base, Args&&... args) {
    refresh();
    return base->forward(std::forward<Args>(args)...);
  }

  // Writes W' into the base's parameters, and puts back the very bits of W. Merged, the base gives
  // the same bits as before merging; the factors have no gradients.
  void merge();
  void unmerge();
  bool merged() const { return merged_; }

  // Text of adapter_config.json.
  const std::string& config() const { return config_; }
  // The factors themselves, under the names that they have in an adapter's file.
  NamedTensors factors() const;
  // The factors with a config that the PEFT library reads (the given one, if there was one).
  AdapterState state() const;
  // Replaces the factors; all names and shapes must fit (InvalidArgument), then all change.
  void load_state(const AdapterState& adapter);

  // What the adapter stands on. DistributedDataParallel and OuterOptimizer compare its bits across
  // ranks and keep its buffers (batch-norm statistics) those of rank 0.
  const torch::nn::Module& base() const override { return *base_; }

  std::vector<std::string> target_modules() const;
  double scale_of(const std::string& target_module) const;

 private:
  struct Layer {
    // The first path of the weight, which other modules may share (tied weights).
    std::string path;
    std::vector<std::shared_ptr<torch::nn::Module>> modules;
    std::vector<at::Tensor*> weights;  // the modules' members
    at::Tensor base;                   // their parameter
    at::Tensor kept;                   // W, while merged
    at::Tensor a, b;
    double scale;
  };

  // Returns the path of the module whose weight this one shares, or is; "" for a new weight.
  std::string adopt(const std::string& path, const std::shared_ptr<torch::nn::Module>& module,
                    std::int64_t rank);
  void freeze();
  at::Tensor effective(const Layer& layer) const;

  std::shared_ptr<torch::nn::Module> base_;
  LoraOptions options_;
  std::string config_;
  std::vector<Layer> layers_;
  std::vector<at::Tensor> frozen_;  // the base's parameters that required a gradient
  bool merged_ = false;
};

}  // namespace thinwire
