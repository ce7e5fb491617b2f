// Data-parallel training of a torch::nn module with compressed gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/ddp/data_parallel_engine.h"
#include "thinwire/torch_ext/ddp/options.h"
#include "thinwire/torch_ext/ddp/visit_tensors.h"

namespace thinwire {

// While it lives, forward passes of the DistributedDataParallel that made it are not synchronised:
// their backward passes add to the local gradients without an exchange, and the next backward pass
// of a forward pass outside averages the sum. As in PyTorch the forward pass decides, wherever its
// backward pass is made.
class [[nodiscard]] NoSync {
 public:
  ~NoSync() { engine_.set_sync(before_); }
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;

 private:
  template <typename Model>
  friend class DistributedDataParallel;
  explicit NoSync(detail::DataParallelEngine& engine) : engine_(engine), before_(engine.sync()) {
    engine_.set_sync(false);
  }

  detail::DataParallelEngine& engine_;
  bool before_;
};

// Wraps a module (a ModuleHolder such as torch::nn::Sequential, or a std::shared_ptr to a module)
// so that its gradients are averaged over the ranks of a group during the backward pass:
//
//   thinwire::DistributedDataParallel ddp(net, world.group(), {.compression = "quantize(bits=4)"});
//   ddp.zero_grad();
//   loss(ddp.forward(images), labels).backward();   // gradients are averaged when this returns
//   optimizer.step();
//
// At construction (collective) all ranks compare their parameters' names, shapes and types, the
// options and the seed, and throw InvalidArgument naming the first difference, or what is wrong on
// one of them; then rank 0's parameters and buffers are copied to all. Parameters and gradients are
// CPU tensors, of real or complex types. A parameter that the module has under several names is
// averaged once, under the first of them. What comm::mark_rank_local() marks is every rank's own.
//
// It is a torch::nn::Module whose only child, "module", is the wrapped one, so that train(),
// parameters() and save() reach it; names in a saved archive begin with "module.", as PyTorch's.
//
// Every backward pass through a result of forward() averages, however many there are of one forward
// pass, and however many forward passes come before it; those of NoSync do not. A backward pass
// that leaves gradients unaveraged throws InvalidArgument: parameters that it does not reach (see
// find_unused_parameters), or that it reaches around forward(). So does a forward pass of a module
// whose parameters were unfrozen, converted, reshaped or replaced since construction. A failing
// exchange surfaces as the exception of backward(), see BucketAverager::average(). Movable. Not
// thread-safe.
template <typename Model>
class DistributedDataParallel : public torch::nn::Module {
 public:
  DistributedDataParallel(Model module, c10::intrusive_ptr<c10d::ProcessGroup> group,
                          DistributedDataParallelOptions options = {})
      : torch::nn::Module("DistributedDataParallel"),
        module_(std::move(module)),
        engine_(std::make_unique<detail::DataParallelEngine>(module_of(module_), std::move(group),
                                                             std::move(options))) {
    register_module("module", module_of(module_));
  }
  // No gradient may be under way.
  DistributedDataParallel(DistributedDataParallel&&) noexcept = default;
  DistributedDataParallel& operator=(DistributedDataParallel&&) noexcept = default;

  // The module's forward, with whatever arguments it takes and result it gives. The result must be
  // a tensor, or a container, map, pair, tuple or optional of them, or a type for which the program
  // has a function visit_tensors(), see visit_tensors.h.
  template <typename... Args>
  auto forward(Args&&... args) {
    engine_->before_forward();
    auto output = module_->forward(std::forward<Args>(args)...);
    static_assert(
        detail::HoldsTensors<decltype(output)>,
        "the result of forward() must be a tensor, or a container, pair, tuple or optional "
        "of them, or have a function visit_tensors()");
    engine_->after_forward(detail::tensors_in(output));
    return output;
  }
  template <typename... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  Model& module() { return module_; }
  const Model& module() const { return module_; }
  bool is_training() const noexcept override { return module_->is_training(); }

  // Clears the gradients of all parameters; works with gradient_as_bucket_view, where
  // Optimizer::zero_grad() throws.
  void zero_grad(bool set_to_none = true) override { engine_->zero_grad(set_to_none); }

  // For gradient accumulation:
  //
  //   { const auto local = ddp.no_sync(); loss(ddp.forward(x1), y1).backward(); }
  //   loss(ddp.forward(x2), y2).backward();   // averages the sum
  NoSync no_sync() { return NoSync(*engine_); }

  // Runs `loop`, in which the ranks may make different numbers of steps (a forward pass, then its
  // backward pass, each): a rank whose loop has ended takes part in the others' steps with
  // gradients of zero until all have ended. Then all take the parameters and buffers of a rank that
  // was among the last to end; the optimizer's state stays each rank's own. Collective; for modules
  // whose own forward communicates (MoELayer), only with throw_on_early_termination.
  //
  //   ddp.join([&] { for (auto& batch : *loader) step(batch); });
  template <typename Loop>
  void join(Loop&& loop, const JoinOptions& options = {}) {
    engine_->begin_join(options);
    try {
      std::forward<Loop>(loop)();
      engine_->take_part_until_all_end();
    } catch (...) {
      engine_->abandon_join();
      throw;
    }
  }

  // Bytes sent so far by this rank.
  CommunicationSummary summary() const { return engine_->exchange().summary(); }
  // How long the parts of the last steps took on this rank, and what of the exchange did not hide
  // behind the backward pass.
  StepProfile profile() const { return engine_->exchange().profile(); }
  // What the plan makes of every layer's gradient, bytes and error. measure_layers() before a step
  // makes that step encode each layer of this rank once more; layer_reports() is of the last step
  // that did.
  void measure_layers() { engine_->exchange().measure_layers(); }
  std::vector<LayerReport> layer_reports() const { return engine_->exchange().layer_reports(); }
  // The setting of every layer; lgreco(...) changes it now and then.
  comm::Plan plan() const { return engine_->exchange().plan(); }
  // What lgreco(...) solved last, with the bytes and errors of every layer; null before that.
  std::shared_ptr<const lgreco::SolvedPlan> allocation() const {
    return engine_->exchange().allocation();
  }

  // For checkpoints, beside the module and the optimiser: what compression owes the parameters, and
  // the plan and the order of the buckets. Only between steps; see GradientExchange::state().
  // state() is of this rank; load_state() is collective, and merge_states() makes states fit
  // another world. state_in_place() is the same without copies of what is as large as the model:
  // valid until the next step begins, for who writes or copies it before that.
  GradientState state() const { return engine_->state(); }
  GradientState state_in_place() const { return engine_->state_in_place(); }
  void load_state(const GradientState& state) { engine_->load_state(state); }

  // For ranks that may change while they train (launch/elastic/): see Movable. Goes on over another
  // group, keeping residuals, plan and order of the buckets; rank 0's parameters and buffers are
  // copied to all. Groups over MPI cannot be left.
  void begin_step() { engine_->begin_step(); }
  void end_step() { engine_->end_step(); }
  std::int64_t finished_steps() const { return engine_->finished_steps(); }
  void leave(Standing standing) { engine_->leave(standing); }
  NamedTensors shared_state() const { return engine_->shared_state(); }
  void take_over(const NamedTensors& of_rank_0) { engine_->take_over(of_rank_0); }
  void arrive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
              std::chrono::milliseconds timeout) {
    engine_->arrive(group, timeout);
  }

  // CRC-32C of all parameters that ranks share, in the order of named_parameters().
  std::uint32_t parameters_crc32c() const { return engine_->parameters_crc32c(); }
  // Whether all ranks have the same of them, bit for bit. Collective.
  bool replicas_equal() { return engine_->replicas_equal(); }

 private:
  static std::shared_ptr<torch::nn::Module> module_of(const Model& module) {
    if constexpr (std::is_base_of_v<torch::detail::ModuleHolderIndicator, Model>) {
      return module.is_empty() ? nullptr : module.ptr();
    } else {
      return module;
    }
  }

  Model module_;
  std::unique_ptr<detail::DataParallelEngine> engine_;
};

}  // namespace thinwire
