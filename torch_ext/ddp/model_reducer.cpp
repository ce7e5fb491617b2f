#include "thinwire/torch_ext/ddp/model_reducer.h"

#include <unordered_map>

namespace thinwire::detail {
namespace {

// What PyTorch's own DistributedDataParallel keeps of its Reducer is protected.
struct ReducerState : c10d::Reducer {
  static const std::vector<at::Tensor>& parameters(const c10d::Reducer& reducer) {
    return reducer.*(&ReducerState::params_);
  }
  static const at::Tensor& used(const c10d::Reducer& reducer) {
    return reducer.*(&ReducerState::local_used_map_);
  }
};

}  // namespace

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

std::function<bool(const c10::TensorImpl*)> locally_used(c10d::Reducer& reducer) {
  std::unordered_map<const c10::TensorImpl*, std::int64_t> index;
  for (const at::Tensor& parameter : ReducerState::parameters(reducer))
    index.emplace(parameter.unsafeGetTensorImpl(), static_cast<std::int64_t>(index.size()));
  return [&reducer, index = std::move(index)](const c10::TensorImpl* parameter) {
    const at::Tensor& used = ReducerState::used(reducer);
    const auto found = index.find(parameter);
    return used.defined() && found != index.end() && found->second < used.numel() &&
           used.const_data_ptr<std::int32_t>()[found->second] != 0;
  };
}

}  // namespace thinwire::detail
