// Training that meets seldom: local SGD and DiLoCo.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/torch_ext/elastic/move.h"
#include "thinwire/torch_ext/outer/outer_parameters.h"
#include "thinwire/torch_ext/outer/outer_state.h"

namespace thinwire {

// Every rank must pass the same values.
struct OuterOptimizerOptions {
  std::int64_t inner_steps = 50;  // of the inner optimizer between two exchanges
  // Of the outer step; rate 1 with momentum 0, which is in [0, 1), averages the replicas. What is
  // not given is DiLoCo's where deltas arrive as they are, rate 0.7 and momentum 0.9, and rate 1
  // and momentum 0.5 where `compression` keeps residuals: these come late already, and much
  // momentum carries them too far (docs/compeft.md). Nesterov's unless said otherwise.
  std::optional<double> learning_rate = {};
  std::optional<double> momentum = {};
  std::optional<bool> nesterov = {};
  // Of residuals 0.95 is added to the next delta, unless residual_decay says otherwise. Any codec's
  // spec, as for gradients: `none`, `cast(bf16)`, `ternary(density=0.05)`, with
  // error_feedback=auto|on|off where wanted.
  std::string compression = "ternary(density=0.05)";
  // What shares one threshold and one scale: each tensor; LoRA's A factors, its B factors and all
  // others; everything. Codecs that look at a tensor's shape (powersgd) need kTensor.
  peft::Granularity granularity = peft::Granularity::kTensor;
  // Parts of fewer entries travel uncompressed.
  std::int64_t min_numel = 1024;
  // Exceptions by name of the part, as in CompressionOptions.
  std::vector<std::pair<std::string, std::string>> overrides = {};
  std::uint64_t seed = 0;
  // Compare a checksum of all weights across ranks after every outer step.
  bool check_replicas = true;
  // Where a parameter of this rank is not finite at a meeting, forget what the inner optimizer
  // keeps for it: moments that hold a NaN would spoil every later step, of all ranks.
  bool reset_inner_state = true;
  // So many outer steps dropped in a row end the training with a CommError of the rank whose deltas
  // are not finite; 0: go on for ever.
  std::int64_t max_skipped_in_a_row = 10;
  Timeline* timeline = nullptr;  // not owned; must outlive the object
  // As in CompressionOptions: the deltas of `record_steps` outer steps.
  std::string record_gradients = {};
  std::int64_t record_from = 0;
  std::int64_t record_steps = 20;
};

// What one rank's outer steps have cost.
struct OuterSummary {
  std::int64_t inner_steps = 0;
  std::int64_t outer_steps = 0;
  std::int64_t skipped_steps = 0;  // of these, dropped because a delta was not finite
  // Of the deltas, and in sent_bytes all that goes with them: the meetings, the comparisons of the
  // weights, and on rank 0 the buffers. Not the broadcast of the model at the start.
  comm::Traffic traffic;
  double wait_seconds = 0;      // until the last rank had come to an outer step
  double exchange_seconds = 0;  // from then on: encoding, sending, decoding
};

// Every rank trains its own replica with any optimizer of torch; after every `inner_steps` of them
// the replicas meet. With s the weights at the last meeting and x_r those of rank r now:
//
//   d = mean over ranks of D(C(s - x_r + residual_r))     (residuals where the codec needs them)
//   m = momentum * m + d
//   s = s - learning_rate * (d + momentum * m)             (m alone without nesterov)
//
// and every rank goes on from s. Stich, "Local SGD converges fast and communicates little", ICLR
// 2019 (momentum 0, learning rate 1); Douillard et al., "DiLoCo", arXiv 2311.08105. The state of
// the inner optimizer stays with its rank. s and m are kept in float32; weights of another float
// type are s, rounded.
//
// Deltas of the weights are what ComPEFT compresses (arXiv 2311.13171), hence the default codec.
// Its scale must be the mean of the kept magnitudes: with `scale=std` an alpha of 4 or more makes
// residuals grow without bound, which warnings() says.
//
//   torch::optim::AdamW inner(net->parameters(), 1e-3);
//   thinwire::OuterOptimizer optimizer(*net, inner, world.group());
//   for (...) { inner.zero_grad(); loss(...).backward(); optimizer.step(); }
//
// Parameters and buffers are on the CPU or all on one CUDA device, with the codecs that
// docs/gpu.md lists; their replicas have the bits of those on the CPU where what the inner steps
// compute has. An outer step takes 12 B of device memory a parameter, is queued on the current
// stream, which has to be the same in all calls, and waits for the device.
//
// Not thread-safe.
class OuterOptimizer {
 public:
  // Takes the module's parameters that require a gradient, each once, under its first name, but for
  // those that are a rank's own (comm::mark_rank_local()); `inner` must optimise these. Collective:
  // duplicates the group, compares names, shapes, types, options and, for adapters such as Lora,
  // the bits of the base (InvalidArgument on every rank, naming the first difference or the rank
  // that has a mistake), and copies rank 0's parameters and buffers to all. A base that differs
  // where it should not is given to all by broadcast_base().
  OuterOptimizer(const torch::nn::Module& module, torch::optim::Optimizer& inner,
                 const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                 OuterOptimizerOptions options = {});
  ~OuterOptimizer();
  OuterOptimizer(const OuterOptimizer&) = delete;
  OuterOptimizer& operator=(const OuterOptimizer&) = delete;

  // One step of the inner optimizer and, after every inner_steps of them, an outer step; returns
  // whether there was one. Every rank must make the same number of calls. Throws InvalidArgument
  // where a parameter has been frozen, unfrozen or converted since the construction; that and
  // whatever the inner optimizer throws becomes known to all ranks.
  bool step();

  // Meets now, whatever the number of inner steps since the last time. Collective. All ranks hold
  // the same bits afterwards; buffers (batch-norm statistics, those of an adapter's base too) are
  // rank 0's. If any rank's delta is not finite, nothing is exchanged, all ranks go back to the
  // weights of the last meeting and momentum stays as it was; the log of every rank names the rank
  // and the parameter. Throws like BucketAverager::average(); CommError after
  // max_skipped_in_a_row; InternalError where the checksums differ.
  void outer_step();

  // Of the outer steps to come; alike on all ranks, which the next one compares: InvalidArgument on
  // every rank where they differ.
  void set_learning_rate(double learning_rate);
  OuterSummary summary() const;
  const comm::Plan& plan() const { return plan_; }
  // Settings that would diverge, with the reason; also logged by rank 0.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // CRC-32C of the weights of the last meeting; equal on all ranks.
  std::uint32_t synchronised_crc32c() const;

  // What the outer step uses.
  struct Outer {
    double learning_rate, momentum;
    bool nesterov;
  };
  const Outer& outer() const { return outer_; }

  // Everything but the parameters and the inner optimizer, which the program saves. Restoring both
  // and this goes on with the same bits. load_state() is collective: it throws InvalidArgument, on
  // every rank, for the state of another model, another number of ranks (see merge_states()) or
  // another step than the other ranks have; nothing has changed then. state_in_place() is state()
  // without copies of what is as large as the model: valid until the next step begins, for who
  // writes or copies it before that.
  OuterState state() const;
  OuterState state_in_place() const;
  void load_state(const OuterState& state);

  // For ranks that may change while they train, see Movable. Its steps are the outer ones, in which
  // alone ranks meet: between them each goes on with weights of its own, and keeps them. Where an
  // outer step has failed and is to be made again, the next step() does that and nothing else, as
  // the inner step before it is done. A rank that is new or behind starts from the weights of the
  // last meeting.
  void begin_step() { marks_ = true; }
  void end_step() {}
  std::int64_t finished_steps() const { return summary_.outer_steps; }
  void leave(Standing standing);
  NamedTensors shared_state() const;
  void take_over(const NamedTensors& of_rank_0);
  void arrive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
              std::chrono::milliseconds timeout);

 private:
  // Whether the next step() has to do with the last one, which failed.
  enum class Repeat { kNothing, kOuterStep, kNoMore };

  void agree_on_options(c10d::ProcessGroup& group);
  std::unique_ptr<comm::BucketAverager> make_averager(
      const c10::intrusive_ptr<c10d::ProcessGroup>& group) const;
  // Without the averager's state.
  detail::SavedOuter saved_besides() const;
  detail::SavedOuter saved_now() const;
  void collect_warnings();
  void broadcast(std::vector<at::Tensor> tensors, const char* operation);
  void check_device(c10d::ProcessGroup& group) const;
  // Of the trained parameters, those that are not finite, by index.
  std::vector<std::size_t> form_delta();
  bool meet(const std::vector<std::size_t>& not_finite);
  void broadcast_buffers();
  void apply();
  void write_parameters();
  void check_same_weights();

  OuterOptimizerOptions options_;
  Outer outer_;
  torch::optim::Optimizer& inner_;
  std::string name_;
  detail::OuterParameters parameters_;
  comm::Bucket bucket_;
  comm::Plan plan_;
  std::unique_ptr<comm::BucketAverager> averager_;
  at::Tensor synchronised_, momentum_;  // [numel], float32
  std::vector<std::string> warnings_;
  OuterSummary summary_;
  std::uint64_t sent_beside_ = 0;  // bytes that the averager does not know of
  std::int64_t skipped_in_a_row_ = 0;
  std::int64_t loads_ = 0;
  Repeat repeat_ = Repeat::kNothing;
  bool marks_ = false;  // an outer step that fails is to be made again
  Standing standing_ = Standing::kGoesOn;
  OuterState carried_;  // from one world to the next, until this rank has arrived
  // Where it is behind: what it carries should it have to make the step again after all.
  std::optional<OuterState> before_step_;
  bool begins_at_meeting_ = false;  // once it has arrived
};

}  // namespace thinwire
