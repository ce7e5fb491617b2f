// Routers: which experts a token goes to, and with which weight.
//
// The gate is one linear map without bias, computed in float32 (float64 for float64 tokens) even
// for half-precision tokens: small differences of logits decide.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/api/include/torch/nn/module.h>

#include "thinwire/moe/router/token_layout.h"

namespace thinwire::moe {

enum class Gate {
  kTopK,          // the k largest scores
  kNoisyTopK,     // the same with learned noise on the logits in training; Shazeer et al., 2017
  kSwitch,        // k = 1, not normalised, jitter on the input in training; Fedus et al., 2021
  kGShard,        // k = 2, the second expert with probability 2·weight in training; Lepikhin 2020
  kExpertChoice,  // every expert takes its best tokens; Zhou et al., 2022
  kSigmoidBias    // sigmoid scores, a bias without gradient evens out the load; DeepSeek-V3
};
enum class Score { kSoftmax, kSigmoid };

struct RouterOptions {
  std::int64_t dim = 0;
  std::int64_t experts = 1;
  std::int64_t top_k = 2;
  Gate gate = Gate::kTopK;
  Score score = Score::kSoftmax;  // kSigmoidBias always uses sigmoid
  // Whether the k weights of a token are divided by their sum. Never done with k = 1, where the
  // weight would be 1 and its gradient 0; kExpertChoice cannot.
  bool normalize = true;
  double weight_factor = 1.0;    // on all weights
  double jitter = 0.0;           // kSwitch: inputs times uniform [1 - jitter, 1 + jitter]
  double capacity_factor = 1.0;  // kExpertChoice: tokens per expert = ceil(T·k/E·factor)
  double bias_step = 0.001;      // kSigmoidBias: step of update_bias()
  std::uint64_t seed = 0;        // of the initial weights: equal on all ranks
};

// The decisions for T tokens. Padding tokens have no pairs.
struct Routing {
  Pairs pairs;
  at::Tensor weight;  // [pairs], differentiable
  at::Tensor logits;  // [valid tokens, experts]
  at::Tensor
      probabilities;  // [valid tokens, experts], softmax of the logits (or normalised sigmoid)
};

// Parameters "weight" [experts, dim], for kNoisyTopK "noise_weight" [experts, dim]; buffer "bias"
// [experts] for kSigmoidBias. All are replicated: average their gradients over the ranks.
class Router : public torch::nn::Module {
 public:
  // Throws InvalidArgument, for example for top_k above experts.
  explicit Router(const RouterOptions& options);

  // tokens: [T, dim]; padding: [T] bool, true where a token does not count, or undefined. Scores of
  // a token with NaN are NaN: it goes to the first experts with weight NaN, and spoils no other
  // token except under kExpertChoice, where it comes last.
  Routing forward(const at::Tensor& tokens, const at::Tensor& padding = {});

  // kSigmoidBias: raises the bias of experts with less than the mean number of rows and lowers the
  // others' by bias_step. `expert_rows`: rows of all ranks, so that the bias stays equal on all.
  void update_bias(const std::vector<std::int64_t>& expert_rows);

  const RouterOptions& options() const { return options_; }

 private:
  at::Tensor logits_of(const at::Tensor& tokens);
  Routing choose_experts(const at::Tensor& scores, const std::vector<std::int32_t>& token);
  Routing choose_tokens(const at::Tensor& scores, const std::vector<std::int32_t>& token);

  RouterOptions options_;
  at::Tensor weight_;
  at::Tensor noise_weight_;
  at::Tensor bias_;
};

Gate gate_of(const std::string& name);
std::string name_of(Gate gate);

}  // namespace thinwire::moe
