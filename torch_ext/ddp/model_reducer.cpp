#include "thinwire/torch_ext/ddp/model_reducer.h"

#include <unordered_map>

#include "thinwire/common/error.h"

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

std::vector<std::int64_t> ModelReducer::bucket_order() const {
  const std::lock_guard lock(mutex_);
  if (!has_rebuilt_bucket_)
    return rebuilt_param_indices_.size() == params_.size() ? rebuilt_param_indices_
                                                           : std::vector<std::int64_t>();
  std::vector<std::int64_t> order;
  for (const Bucket& bucket : buckets_)
    order.insert(order.end(), bucket.variable_indices.begin(), bucket.variable_indices.end());
  return order;
}

void ModelReducer::check_bucket_order(const std::vector<std::int64_t>& order) const {
  std::vector<bool> seen(params_.size(), false);
  bool each_once = order.size() == params_.size();
  for (const std::int64_t i : order) {
    const bool known = i >= 0 && i < std::ssize(params_);
    each_once = each_once && known && !seen[static_cast<std::size_t>(i)];
    if (known) seen[static_cast<std::size_t>(i)] = true;
  }
  check(each_once, "the saved order of the buckets is not one of ", params_.size(), " parameters");
}

void ModelReducer::restore_bucket_order(const std::vector<std::int64_t>& order) {
  check_bucket_order(order);
  const std::lock_guard lock(mutex_);
  rebuilt_params_.clear();
  rebuilt_param_indices_ = order;
  for (const std::int64_t i : order)
    rebuilt_params_.push_back(params_[static_cast<std::size_t>(i)]);
  has_rebuilt_bucket_ = false;
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
