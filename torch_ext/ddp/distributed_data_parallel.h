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

#include "thinwire/common/timeline.h"
#include "thinwire/torch_ext/compression/compression.h"
#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire {

// Options that PyTorch's DistributedDataParallel has keep its names and defaults.
struct DistributedDataParallelOptions {
  CompressionOptions compression = {};
  double bucket_cap_mb = 25;
  bool broadcast_buffers = true;  // rank 0's buffers (batch-norm statistics) before each forward
  bool find_unused_parameters = false;
  bool gradient_as_bucket_view = false;  // use zero_grad() of this class, not of the optimizer
  bool static_graph = false;
  Timeline* timeline = nullptr;  // not owned; must outlive the object
};

namespace detail {

// Everything that does not depend on the module's type.
class DataParallelEngine {
 public:
  DataParallelEngine(std::shared_ptr<torch::nn::Module> module,
                     c10::intrusive_ptr<c10d::ProcessGroup> group,
                     DistributedDataParallelOptions options);
  ~DataParallelEngine();

  void before_forward();
  void after_forward(const std::vector<at::Tensor>& outputs);
  void zero_grad();
  void set_sync(bool sync) { sync_ = sync; }
  bool sync() const { return sync_; }
  GradientExchange& exchange();
  const GradientExchange& exchange() const;
  bool finds_unused_parameters() const;
  std::uint32_t parameters_crc32c() const;
  bool replicas_equal();

 private:
  struct State;
  std::unique_ptr<State> state_;
  bool sync_ = true;
};

// The tensors in a forward pass's result, of which the Reducer finds the parameters that took part.
inline void collect_tensors(const at::Tensor& tensor, std::vector<at::Tensor>& into) {
  if (tensor.defined()) into.push_back(tensor);
}
template <typename Range>
requires requires(const Range& range) {
  range.begin(), range.end();
}
void collect_tensors(const Range& range, std::vector<at::Tensor>& into) {
  for (const auto& item : range) collect_tensors(item, into);
}
template <typename First, typename Second>
void collect_tensors(const std::pair<First, Second>& pair, std::vector<at::Tensor>& into) {
  collect_tensors(pair.first, into);
  collect_tensors(pair.second, into);
}
template <typename... Items>
void collect_tensors(const std::tuple<Items...>& items, std::vector<at::Tensor>& into) {
  std::apply([&](const auto&... item) { (collect_tensors(item, into), ...); }, items);
}
template <typename Other>
concept HoldsTensors = requires(const Other& other, std::vector<at::Tensor>& into) {
  collect_tensors(other, into);
};

}  // namespace detail

// Wraps a module (a ModuleHolder such as torch::nn::Sequential, or a std::shared_ptr to a module)
// so that its gradients are averaged over the ranks of a group during the backward pass:
//
//   thinwire::DistributedDataParallel ddp(net, world.group(), {.compression = "quantize(bits=4)"});
//   ddp.zero_grad();
//   loss(ddp.forward(images), labels).backward();   // gradients are averaged when this returns
//   optimizer.step();
//
// At construction (collective) all ranks compare their parameters' names, shapes and types, the
// compression and the seed, and throw InvalidArgument naming the first difference; then rank 0's
// parameters and buffers are copied to all. A failing exchange surfaces as the exception of
// backward(), see BucketAverager::average(). Not thread-safe. Parameters and gradients are CPU
// tensors.
template <typename Module>
class DistributedDataParallel {
 public:
  DistributedDataParallel(Module module, c10::intrusive_ptr<c10d::ProcessGroup> group,
                          DistributedDataParallelOptions options = {})
      : module_(std::move(module)),
        engine_(module_of(module_), std::move(group), std::move(options)) {}

  // The module's forward, with whatever arguments it takes and result it gives.
  template <typename... Args>
  auto forward(Args&&... args) {
    engine_.before_forward();
    auto output = module_->forward(std::forward<Args>(args)...);
    std::vector<at::Tensor> outputs;
    if (engine_.finds_unused_parameters()) {
      static_assert(
          detail::HoldsTensors<decltype(output)>,
          "the result of forward() must be a tensor, or a container, pair or tuple of them");
      detail::collect_tensors(output, outputs);
    }
    engine_.after_forward(outputs);
    return output;
  }
  template <typename... Args>
  auto operator()(Args&&... args) {
    return forward(std::forward<Args>(args)...);
  }

  Module& module() { return module_; }
  const Module& module() const { return module_; }

  // Clears the gradients; works with gradient_as_bucket_view, where Optimizer::zero_grad() throws.
  void zero_grad() { engine_.zero_grad(); }

  // While the guard lives, backward passes add to the local gradients without an exchange; the
  // first pass after it exchanges the sum.
  class NoSync {
   public:
    explicit NoSync(detail::DataParallelEngine& engine) : engine_(engine), before_(engine.sync()) {
      engine_.set_sync(false);
    }
    ~NoSync() { engine_.set_sync(before_); }
    NoSync(const NoSync&) = delete;
    NoSync& operator=(const NoSync&) = delete;

   private:
    detail::DataParallelEngine& engine_;
    bool before_;
  };
  [[nodiscard]] NoSync no_sync() { return NoSync(engine_); }

  // Bytes sent so far by this rank.
  CommunicationSummary summary() const { return engine_.exchange().summary(); }
  // The setting of every layer; lgreco(...) changes it now and then.
  comm::Plan plan() const { return engine_.exchange().plan(); }
  // What lgreco(...) solved last, with the bytes and errors of every layer; null before that.
  std::shared_ptr<const lgreco::SolvedPlan> allocation() const {
    return engine_.exchange().allocation();
  }

  // For checkpoints, beside the module and the optimiser: what compression owes the parameters, and
  // the plan. Only between steps; see GradientExchange::state(). state() is of this rank;
  // load_state() is collective, and merge_states() makes states fit another world.
  GradientState state() const { return engine_.exchange().state(); }
  void load_state(const GradientState& state) { engine_.exchange().load_state(state); }

  // CRC-32C of all parameters, in the order of named_parameters().
  std::uint32_t parameters_crc32c() const { return engine_.parameters_crc32c(); }
  // Whether all ranks have the same parameters, bit for bit. Collective.
  bool replicas_equal() { return engine_.replicas_equal(); }

 private:
  static std::shared_ptr<torch::nn::Module> module_of(const Module& module) {
    if constexpr (std::is_base_of_v<torch::detail::ModuleHolderIndicator, Module>) {
      return module.ptr();
    } else {
      return module;
    }
  }

  Module module_;
  detail::DataParallelEngine engine_;
};

}  // namespace thinwire
