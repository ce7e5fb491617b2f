#include "thinwire/torch_ext/ddp/joined_results.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <utility>

namespace thinwire::detail {
namespace {

class JoinedEnd final : public torch::autograd::Node {
 public:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    return std::move(gradients);
  }
};

}  // namespace

std::vector<at::Tensor> joined_results(const std::vector<at::Tensor>& results) {
  const std::shared_ptr<JoinedEnd> end(new JoinedEnd, torch::autograd::deleteNode);
  end->set_next_edges(torch::autograd::collect_next_edges(results));
  std::vector<at::Tensor> joined;
  const at::NoGradGuard no_grad;
  for (const at::Tensor& result : results) {
    joined.push_back(result.clone());
    torch::autograd::set_history(joined.back(), end);
  }
  return joined;
}

}  // namespace thinwire::detail
