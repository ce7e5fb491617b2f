// When backward passes begin and end, and through which forward pass they came.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

namespace thinwire::detail {

// A call of forward(), as the backward passes through its result know it.
struct ForwardPass {
  std::int64_t number = 0;
  bool sync = true;  // whether the gradients are to be averaged
  // Where the result's graph begins. Weak: the graph holds the hooks, which hold this.
  std::vector<std::pair<std::weak_ptr<torch::autograd::Node>, std::uint32_t>> roots;

  // Tensors with that graph; nothing for a part of it that is gone.
  std::vector<at::Tensor> results() const;
};

// Who is told. What these functions throw ends the backward pass.
class BackwardListener {
 public:
  virtual ~BackwardListener() = default;
  // Before any other hook of a parameter runs. `forward` is null for a pass that reaches parameters
  // by other ways than a result of forward().
  virtual void backward_begins(const ForwardPass* forward) = 0;
  // A parameter, by its index, has its gradient; it may do so several times in a pass.
  virtual void gradient_arrives(std::size_t parameter) = 0;
  // At the end of a pass; `reached` says of each parameter whether it had a gradient in it.
  virtual void backward_ends(const std::vector<bool>& reached) = 0;
};

// Listens to autograd: on the parameters' accumulators, and on the results of forward(). A pass
// that computes gradients but stores none in a parameter (torch::autograd::grad()) is not told of.
//
// Passes within a pass, as checkpointing makes them, are parts of the outer one where that came
// through a watched result. Not thread-safe: one backward pass at a time.
class BackwardWatch : public std::enable_shared_from_this<BackwardWatch> {
 public:
  // Hooks run in the order in which they are made: the watch must come before the Reducer's. The
  // listener must outlive the watch.
  BackwardWatch(const std::vector<at::Tensor>& parameters, BackwardListener& listener);
  ~BackwardWatch();
  BackwardWatch(const BackwardWatch&) = delete;
  BackwardWatch& operator=(const BackwardWatch&) = delete;

  // Tells of the backward passes through `results` that they belong to `forward`.
  void watch(const std::vector<at::Tensor>& results,
             const std::shared_ptr<const ForwardPass>& forward);
  // No pass is under way: one that an exception has ended never said so.
  void forget_pass() { pass_.reset(); }

 private:
  struct Pass {
    int graph_task;
    std::shared_ptr<const ForwardPass> forward;
    bool begun = false;
    std::vector<bool> reached;
  };
  void open(int graph_task, std::shared_ptr<const ForwardPass> forward);
  void result_reached(const std::shared_ptr<const ForwardPass>& forward);
  void parameter_reached(std::size_t parameter);
  void end(int graph_task);

  BackwardListener& listener_;
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, std::uintptr_t>> hooks_;
  std::optional<Pass> pass_;
};

}  // namespace thinwire::detail
