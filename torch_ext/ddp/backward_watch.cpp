#include "thinwire/torch_ext/ddp/backward_watch.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace thinwire::detail {

using torch::autograd::variable_list;

std::vector<at::Tensor> ForwardPass::results() const {
  std::vector<at::Tensor> tensors;
  for (const auto& [node, output] : roots) {
    const auto alive = node.lock();
    if (!alive) continue;
    const at::Tensor tensor = at::empty({0});
    torch::autograd::impl::set_gradient_edge(tensor, {alive, output});
    tensors.push_back(tensor);
  }
  return tensors;
}

BackwardWatch::BackwardWatch(const std::vector<at::Tensor>& parameters, BackwardListener& listener)
    : listener_(listener) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto accumulator = torch::autograd::impl::grad_accumulator(parameters[i]);
    const auto key =
        accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
            [this, i](const variable_list& outputs, const variable_list&) {
              parameter_reached(i);
              return outputs;
            },
            [](torch::autograd::CompiledNodeArgs&) {}));
    hooks_.emplace_back(std::move(accumulator), key);
  }
}

BackwardWatch::~BackwardWatch() {
  for (const auto& [accumulator, key] : hooks_) accumulator->del_post_hook(key);
}

void BackwardWatch::watch(const std::vector<at::Tensor>& results,
                          const std::shared_ptr<const ForwardPass>& forward) {
  for (const at::Tensor& result : results) {
    if (!result.grad_fn()) continue;
    result.register_hook([watch = weak_from_this(), forward](const at::Tensor&) {
      if (const auto alive = watch.lock()) alive->result_reached(forward);
    });
  }
}

void BackwardWatch::open(int graph_task, std::shared_ptr<const ForwardPass> forward) {
  pass_ = Pass{graph_task, std::move(forward), false, std::vector<bool>(hooks_.size())};
  torch::autograd::Engine::get_default_engine().queue_callback(
      [watch = weak_from_this(), graph_task] {
        if (const auto alive = watch.lock()) alive->end(graph_task);
      });
}

void BackwardWatch::result_reached(const std::shared_ptr<const ForwardPass>& forward) {
  const int graph_task = torch::autograd::get_current_graph_task_id();
  // Of several results, or several forward passes, the first one reached counts.
  if (pass_ && pass_->graph_task == graph_task) return;
  open(graph_task, forward);
}

void BackwardWatch::parameter_reached(std::size_t parameter) {
  if (!pass_) open(torch::autograd::get_current_graph_task_id(), nullptr);
  if (!pass_->begun) {
    pass_->begun = true;
    listener_.backward_begins(pass_->forward.get());
  }
  pass_->reached[parameter] = true;
  listener_.gradient_arrives(parameter);
}

void BackwardWatch::end(int graph_task) {
  if (!pass_ || pass_->graph_task != graph_task) return;
  const Pass ended = std::move(*pass_);
  pass_.reset();
  if (ended.begun) listener_.backward_ends(ended.reached);
}

}  // namespace thinwire::detail
