// A Mixture-of-Experts layer whose experts are spread over the ranks of a process group.
//
//   layer = register_module("mixture", std::make_shared<moe::MoELayer>(options, group));
//   ...
//   auto result = layer->forward(tokens);
//   loss = task_loss(result.output) + result.loss;
//
// Every rank brings its own tokens (any number, also none) and holds its own experts; the router
// and the shared expert are replicated, and their gradients must be averaged over the ranks as in
// any data-parallel program. The gradients of the experts must not be (see ExpertGradient): where
// they are spread over ranks they are marked with comm::mark_rank_local(), so that
// DistributedDataParallel leaves them alone and a layer is an ordinary child of its model.
//
// Experts may be spread over fewer ranks than a model is trained on: `group` is then this rank's
// part, and `replicas` the ranks of the other parts that hold the same experts. Of 4 ranks with
// experts on 2, the groups are {0, 1} and {2, 3}, the replicas {0, 2} and {1, 3}. After every
// backward pass average_expert_gradients() makes theirs one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/api/include/torch/nn/module.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/moe/dispatch/token_dispatcher.h"
#include "thinwire/moe/layer/experts.h"
#include "thinwire/moe/layer/telemetry.h"
#include "thinwire/moe/merge/dedup.h"
#include "thinwire/moe/router/router.h"

namespace thinwire::moe {

// An expert's gradient is the sum over the ranks whose tokens it saw.
enum class ExpertGradient {
  kMean,  // divided by the number of ranks: fits losses that are means over a rank's own tokens,
          // as the average of the replicated parameters' gradients does
  kSum    // as it is: fits losses that are sums
};
// Second derivatives (create_graph): right for functions of the gradients of tokens and router, as
// in gradient penalties, where rows travel as they are; an InvalidArgument where they pass a codec.
// Those of functions of the experts' own gradients are not divided a second time by kMean, see Note
// [Expert gradient scale]: divide such a function by the number of ranks, or use kSum.

enum class BalanceLoss { kSwitch, kGShard };

struct MoEOptions {
  RouterOptions router;  // its dim, experts and top_k are those of the layer
  // Experts: a two-layer perceptron each, or whatever `factory` makes.
  std::int64_t hidden = 0;
  Activation activation = Activation::kGelu;
  bool bias = true;
  ExpertFactory factory;
  // Hidden size of one more expert that sees every token on its own rank; 0: none.
  std::int64_t shared_hidden = 0;

  // Rows per expert and rank; 0: as many as come (dropless).
  double capacity_factor = 0;
  DropPolicy drop = DropPolicy::kPosition;

  // Row codecs of the four legs, and merging of similar rows before them.
  LegSpecs rows;
  DedupOptions dedup;
  // Parts in which rows travel while the experts compute; 0: chosen by size.
  int chunks = 0;
  // Whether a token that several experts of one rank want is sent to it once. Lossless; sums of
  // gradients may round differently.
  bool share_rows = true;
  ExpertGradient expert_gradient = ExpertGradient::kMean;

  // Factors of the auxiliary losses in MoEOutput::loss; 0: not computed.
  double balance_factor = 0.01;
  BalanceLoss balance = BalanceLoss::kSwitch;
  double z_factor = 0;
  double importance_factor = 0;

  std::uint32_t layer = 0;  // number of the layer in the model
  std::uint64_t seed = 0;   // of initial weights and of random rounding
};

// Everything that must be equal on all ranks and that the dispatcher does not know of itself.
std::string agreement_of(const MoEOptions& options);

// What one forward pass did on this rank.
struct MoECounters {
  std::int64_t tokens = 0;
  std::int64_t pairs = 0;                  // (token, expert) pairs that the router chose
  std::int64_t dropped = 0;                // of them, over capacity
  std::int64_t rows = 0;                   // pairs that went to an expert
  std::int64_t rows_sent = 0;              // after merging and sharing
  std::vector<std::int64_t> expert_rows;   // [experts] this rank's rows for each, after merging
  std::vector<std::int64_t> arrived_rows;  // [local experts] rows of all ranks that each saw
  MergeSummary dedup;
  LegBytes wire;       // of this forward pass; backward legs are 0
  MoESeconds seconds;  // likewise
};

struct MoEOutput {
  at::Tensor output;  // shape and dtype of the tokens
  at::Tensor loss;    // weighted sum of the auxiliary losses, a scalar; 0 if all are off
  at::Tensor balance_loss, z_loss, importance_loss;  // unweighted; undefined where off
  MoECounters counters;
};

// Not thread-safe. See token_dispatcher.h for what else may use the group meanwhile.
class MoELayer : public torch::nn::Module {
 public:
  // `group` may be null: a single rank with all experts. `replicas`: see above; null: none.
  // Collective over both. Throws InvalidArgument on every rank of both, and of the parts that they
  // join, for options or a factory that cannot work on one or that differ; CommError when a rank
  // does not come.
  MoELayer(const MoEOptions& options, c10::intrusive_ptr<c10d::ProcessGroup> group,
           c10::intrusive_ptr<c10d::ProcessGroup> replicas = {});

  // tokens: [..., dim] of the experts' type, float32, float64, float16 or bfloat16 (under autocast
  // of any of these); padding: [...] bool, true for
  // tokens that do not count (they get zeros, or the shared expert's output), or undefined.
  // Collective, and so is its backward pass, in which every rank must take part.
  //
  // Throws InvalidArgument on every rank, with one text, when the tokens of any rank have a wrong
  // shape or type or the ranks disagree; CommError when a rank is gone. Whatever one rank's experts
  // throw, in the backward pass too, becomes an error with that text on every rank.
  MoEOutput forward(const at::Tensor& tokens, const at::Tensor& padding = {});

  // For the sigmoid_bias gate, once per optimiser step: evens out the load that all ranks saw since
  // the last call. Collective over the group and the replicas, and equal on all ranks.
  void update_expert_bias();

  // After every backward pass of a layer with replicas, before the optimiser's step: makes the
  // gradients of this rank's experts those of all replicas together, their mean or sum as
  // MoEOptions::expert_gradient says. Collective over the replicas; does nothing without.
  void average_expert_gradients();

  // Draws new rotations for merging from the next step on; all ranks must do it at the same step.
  void refresh_rotations() { dedup_.refresh(); }

  // Parameters of this rank's experts; the others are replicated.
  std::vector<at::Tensor> expert_parameters() const;
  std::vector<at::Tensor> replicated_parameters() const;

  // All parameters and buffers of this rank under their names in a state, sharing memory.
  NamedTensors weights() const;
  // Copies of everything that this rank holds. Experts are named by their global number:
  // "experts.<number>.<parameter>".
  NamedTensors local_state() const;
  // This rank's part of what all hold: its experts, and on rank 0 what is equal on all. The parts
  // of all ranks, merged (std::map::merge), are the full state. Local: for layers whose experts
  // together do not fit one host, each rank saves its own.
  NamedTensors shard() const;
  // The same for all ranks together; equal on all. Collective.
  NamedTensors full_state() const;
  // Takes this rank's part of a full state, whatever the number of ranks that made it; of shards,
  // those that hold this rank's experts and rank 0's are enough. Throws InvalidArgument on every
  // rank for missing tensors, or shapes or dtypes that do not fit on one, before anything is
  // changed. What goes wrong after that on one rank the others learn in their next collective.
  // Collective over the group.
  //
  // A state also holds how rows were merged. kFromState makes this layer merge as the saved one
  // did, its options included: a model that was trained with compensation may need the merging in
  // evaluation, too (evaluation=on). kKeepOptions keeps this layer's own options.
  enum class Merging { kFromState, kKeepOptions };
  void load_state(const NamedTensors& state, Merging merging = Merging::kFromState);

  const MoEOptions& options() const { return options_; }
  // That the experts are spread over; null: none.
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return dispatcher_->group(); }
  Router& router() { return *router_; }
  ExpertGroup& experts() { return *experts_; }
  const Dedup& dedup() const { return dedup_; }
  // All that this rank has sent so far for passes, evaluation and backward passes included, and
  // between them (LegBytes::replicas); not what the constructor and states send.
  LegBytes wire_bytes() const { return dispatcher_->wire(); }
  // The training passes so far (those with gradients), with their backward passes and what was sent
  // between them.
  MoESummary summary() const;

 private:
  struct Prepared;
  // All that a constructor does but for talking to others.
  void build(const c10::intrusive_ptr<c10d::ProcessGroup>& group);
  // Has the group agree by `join_group`, then the replicas, so that a mistake of one rank is one of
  // all.
  void join_replicas(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                     const std::function<void()>& join_group);
  // Runs `check` and throws on all ranks of the group what it throws on one.
  void agree(const char* what, const std::function<std::string()>& check) const;
  Prepared prepare(const at::Tensor& tokens, const at::Tensor& padding);
  void check_dtype(const at::Tensor& tokens) const;
  at::Tensor run_experts(const RowRoutes& routes, const at::Tensor& rows,
                         const std::vector<std::int64_t>& counts);
  MoEOutput compute(const at::Tensor& tokens, Prepared& prepared, const RowRoutesPtr& routes);
  void count(const RouteRequest& request, const RowRoutes& routes, const TokenLayout& layout,
             const MoECounters& counters);
  void add_losses(const Routing& routing, MoEOutput& result) const;
  void check_state(const NamedTensors& state, const DedupOptions& merging) const;
  void load_merging(const NamedTensors& state, Dedup& dedup) const;

  MoEOptions options_;
  c10::intrusive_ptr<c10d::ProcessGroup> replicas_;
  std::string name_;                      // of this layer among those of the group
  mutable std::uint64_t agreements_ = 0;  // that agree() has made so far
  std::uint64_t averages_ = 0;            // of the experts' gradients and loads so far
  std::shared_ptr<TokenDispatcher> dispatcher_;
  std::shared_ptr<Router> router_;
  std::shared_ptr<ExpertGroup> experts_;
  std::shared_ptr<GroupedFfn> shared_;
  Dedup dedup_ = Dedup({}, 1, 0, 0);  // off until the options are known to be good
  std::vector<std::int64_t> load_;  // this rank's rows for every expert since update_expert_bias()
  MoESummary summary_;              // without what the dispatcher itself counts
  LegBytes evaluation_wire_;        // of passes without gradients
  MoESeconds evaluation_seconds_;   // likewise
};

}  // namespace thinwire::moe
