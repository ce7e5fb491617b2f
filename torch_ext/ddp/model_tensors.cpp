#include "thinwire/torch_ext/ddp/model_tensors.h"

#include <torch/nn/modules/embedding.h>

#include <algorithm>
#include <set>
#include <span>
#include <unordered_set>
#include <utility>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/common/pattern.h"
#include "thinwire/torch_ext/model/frozen_base.h"

namespace thinwire::detail {
namespace {

// Without the names' texts, which cost ten times as much.
std::vector<const c10::TensorImpl*> parameters_in(const torch::nn::Module& module) {
  std::vector<const c10::TensorImpl*> found;
  module.apply([&](const torch::nn::Module& part) {
    for (const auto& item : part.named_parameters(/*recurse=*/false))
      found.push_back(item.value().unsafeGetTensorImpl());
  });
  return found;
}

// Names of the weights whose gradients are sparse.
std::set<std::string> sparse_weights(const torch::nn::Module& module) {
  std::set<std::string> names;
  module.apply([&](const std::string& path, const torch::nn::Module& part) {
    const auto* embedding = dynamic_cast<const torch::nn::EmbeddingImpl*>(&part);
    const auto* bag = dynamic_cast<const torch::nn::EmbeddingBagImpl*>(&part);
    if ((embedding && embedding->options.sparse()) || (bag && bag->options.sparse()))
      names.insert(path.empty() ? "weight" : path + ".weight");
  });
  return names;
}

std::string names_of(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 5;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += concat(i == 0 ? "'" : ", '", names[i], "'");
  return names.size() <= kShown ? text : concat(text, " and ", names.size() - kShown, " more");
}

std::vector<at::Tensor> detached(const std::vector<NamedTensor>& items) {
  std::vector<at::Tensor> tensors;
  for (const NamedTensor& item : items) tensors.push_back(item.tensor.detach());
  return tensors;
}

}  // namespace

ModelTensors::ModelTensors(std::shared_ptr<torch::nn::Module> module,
                           const std::vector<std::string>& ignored)
    : module_(std::move(module)) {
  check(module_ != nullptr, "DistributedDataParallel needs a module, got a null pointer");
  const std::set<std::string> sparse = sparse_weights(*module_);
  std::unordered_set<const c10::TensorImpl*> seen;
  const auto for_each_once = [&](const auto& items, const auto& action) {
    for (const auto& item : items) {
      if (seen.insert(item.value().unsafeGetTensorImpl()).second)
        action(NamedTensor{item.key(), item.value()});
    }
  };
  const auto parameters = module_->named_parameters();
  const auto buffers = module_->named_buffers();
  for_each_once(parameters, [&](const NamedTensor& parameter) {
    if (is_left_alone(parameter, ignored)) return;
    check(!parameter.tensor.requires_grad() || !sparse.contains(parameter.name), "parameter '",
          parameter.name,
          "' has sparse gradients, which are not averaged; make its module with sparse(false), or "
          "name it in ignored_parameters");
    add_parameter(parameter);
  });
  for_each_once(buffers, [&](const NamedTensor& buffer) {
    if (is_left_alone(buffer, ignored)) return;
    description_ += concat("buffer ", buffer.name, " ", buffer.tensor.sizes(), " ",
                           buffer.tensor.scalar_type(), "\n");
    buffers_.push_back(buffer);
  });
  description_ += describe_bases(*module_);
  for (const at::Tensor& buffer : base_buffers(*module_))
    if (seen.insert(buffer.unsafeGetTensorImpl()).second) buffers_.push_back({"of a base", buffer});
  for (const std::string& pattern : ignored) {
    const auto fits = [&](const auto& item) { return matches_pattern(pattern, item.key()); };
    check(std::any_of(parameters.begin(), parameters.end(), fits) ||
              std::any_of(buffers.begin(), buffers.end(), fits),
          "'", pattern,
          "' in ignored_parameters matches none of the model's parameters and "
          "buffers");
  }
  if (!shared_.empty()) device_ = shared_.front().tensor.device();
  check(!trained_.empty(), "the module has no parameter that requires a gradient",
        leaves_some_alone_ ? " and is not ignored" : "");
  registered_ = parameters_in(*module_);
}

// What a rank has of its own the others need not have; of what is ignored the ranks know only that
// all have it.
bool ModelTensors::is_left_alone(const NamedTensor& tensor,
                                 const std::vector<std::string>& ignored) {
  const bool own = comm::is_rank_local(tensor.tensor);
  if (!own && std::ranges::none_of(ignored, [&](const std::string& pattern) {
        return matches_pattern(pattern, tensor.name);
      })) {
    return false;
  }
  if (!own) description_ += concat("ignored ", tensor.name, "\n");
  leaves_some_alone_ = true;
  return true;
}

void ModelTensors::add_parameter(const NamedTensor& parameter) {
  const at::Tensor& tensor = parameter.tensor;
  check(tensor.is_cpu() || tensor.is_cuda(), "parameter '", parameter.name, "' is on ",
        tensor.device(), "; gradients are compressed on CPUs and CUDA devices");
  const at::Device device = shared_.empty() ? tensor.device() : shared_.front().tensor.device();
  check(tensor.device() == device, "parameter '", parameter.name, "' is on ", tensor.device(),
        ", the parameters before it on ", device,
        "; all parameters of DistributedDataParallel have to be on one device");
  if (shared_.empty() && !device.is_cpu()) description_ += "in GPU memory\n";
  description_ += concat("parameter ", parameter.name, " ", tensor.sizes(), " ",
                         tensor.scalar_type(), tensor.requires_grad() ? "" : " frozen", "\n");
  shared_.push_back(parameter);
  if (!tensor.requires_grad()) {
    frozen_.push_back(parameter);
    return;
  }
  trained_.push_back(parameter);
  types_.push_back(tensor.scalar_type());
  shapes_.push_back(tensor.sizes().vec());
}

std::vector<at::Tensor> ModelTensors::trained_tensors() const {
  std::vector<at::Tensor> tensors;
  for (const NamedTensor& item : trained_) tensors.push_back(item.tensor);
  return tensors;
}

std::vector<LayerInfo> ModelTensors::layers() const {
  std::vector<LayerInfo> layers;
  for (const auto& [name, tensor] : trained_) layers.push_back(layer_of(name, tensor));
  return layers;
}

std::vector<at::Tensor> ModelTensors::parameters() const {
  return detached(shared_);
}

std::vector<at::Tensor> ModelTensors::buffers() const {
  return detached(buffers_);
}

std::uint32_t ModelTensors::crc32c() const {
  std::uint32_t crc = 0;
  for (const at::Tensor& parameter : parameters()) {
    const at::Tensor values = parameter.cpu().contiguous();
    crc = thinwire::crc32c(std::as_bytes(std::span(
                               static_cast<const char*>(values.const_data_ptr()), values.nbytes())),
                           crc);
  }
  return crc;
}

void ModelTensors::check_unchanged(bool thoroughly) const {
  std::vector<std::string> unfrozen;
  for (const NamedTensor& item : frozen_)
    if (item.tensor.requires_grad()) unfrozen.push_back(item.name);
  check(unfrozen.empty(), "parameters require a gradient that did not when ",
        "DistributedDataParallel was made, so they would not be averaged: ", names_of(unfrozen),
        "; make a new DistributedDataParallel");
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    const auto& [name, now] = trained_[i];
    check(now.device() == device_ && now.scalar_type() == types_[i] && now.sizes() == shapes_[i],
          "parameter '", name, "' was ", types_[i], " ", at::IntArrayRef(shapes_[i]), " on ",
          device_.is_cpu() ? std::string("the CPU") : device_.str(),
          " when DistributedDataParallel was made and is ", now.scalar_type(), " ", now.sizes(),
          " on ", now.device(),
          " now; convert the module before, or make a new DistributedDataParallel");
  }
  if (thoroughly && parameters_in(*module_) != registered_) throw_other_parameters();
}

void ModelTensors::throw_other_parameters() const {
  std::unordered_set<const c10::TensorImpl*> before(registered_.begin(), registered_.end());
  std::vector<std::string> added;
  for (const auto& item : module_->named_parameters())
    if (!before.contains(item.value().unsafeGetTensorImpl())) added.push_back(item.key());
  throw InvalidArgument(concat(
      "the module has not the parameters that it had when DistributedDataParallel was made",
      added.empty() ? "" : "; new are ", names_of(added), "; make a new DistributedDataParallel"));
}

}  // namespace thinwire::detail
