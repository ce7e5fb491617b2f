#include "thinwire/torch_ext/ddp/model_reducer.h"

namespace thinwire::detail {

bool ModelReducer::is_prepared() const {
  const std::lock_guard lock(mutex_);
  return expect_autograd_hooks_;
}

void ModelReducer::skip_backward() {
  const std::lock_guard lock(mutex_);
  expect_autograd_hooks_ = false;
}

void ModelReducer::begin_backward() {
  const std::lock_guard lock(mutex_);
  rebuilt_params_.clear();
  rebuilt_param_indices_.clear();
}

void ModelReducer::begin_static_graph() {
  const std::lock_guard lock(mutex_);
  num_bwd_calls_ = 0;
  first_autograd_hook_called_ = false;
  for (auto& [parameter, times] : numGradHooksTriggeredMap_) times = 0;
}

}  // namespace thinwire::detail
