#include "thinwire/torch_ext/outer/outer_parameters.h"

#include <map>
#include <unordered_set>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/model/frozen_base.h"

namespace thinwire::detail {

OuterParameters::OuterParameters(const torch::nn::Module& module, peft::Granularity granularity) {
  std::map<std::string, std::vector<std::pair<std::string, at::Tensor>>> by_part;
  std::vector<std::string> order;
  std::unordered_set<const c10::TensorImpl*> seen;
  std::string others;
  bool first = true;
  const auto fresh = [&](const std::string& name, const at::Tensor& tensor, const char* kind) {
    if (!tensor.defined() || !seen.insert(tensor.unsafeGetTensorImpl()).second) return false;
    if (comm::is_rank_local(tensor)) return false;
    const at::Device device = tensor.device();
    check(device.is_cpu() || device.is_cuda(), kind, " '", name, "' is on ", device,
          "; outer steps take modules on the CPU or a CUDA device");
    check(first || device == device_, kind, " '", name, "' is on ", device,
          ", the tensors before it on ", device_,
          "; all of a module that takes outer steps has to be on one device");
    device_ = device;
    first = false;
    return true;
  };
  for (const auto& item : module.named_parameters()) {
    const at::Tensor& parameter = item.value();
    if (!fresh(item.key(), parameter, "parameter")) continue;
    watched_.push_back({item.key(), parameter, parameter.requires_grad(), parameter.scalar_type(),
                        parameter.sizes().vec()});
    if (!parameter.requires_grad()) {
      others += concat("frozen parameter ", item.key(), " ", parameter.sizes(), " ",
                       parameter.scalar_type(), "\n");
      continue;
    }
    check(at::isFloatingType(parameter.scalar_type()), "parameter '", item.key(), "' is of type ",
          parameter.scalar_type(), "; outer steps take float parameters");
    const std::string part = peft::part_name(granularity, item.key());
    if (!by_part.contains(part)) order.push_back(part);
    by_part[part].emplace_back(item.key(), parameter);
  }
  check(!order.empty(), "the module has no parameter that requires a gradient");
  for (const auto& item : module.named_buffers()) {
    if (!fresh(item.key(), item.value(), "buffer")) continue;
    others += concat("buffer ", item.key(), " ", item.value().sizes(), " ",
                     item.value().scalar_type(), "\n");
    buffers_.push_back(item.value());
  }
  for (const at::Tensor& buffer : detail::base_buffers(module))
    if (fresh("of a base", buffer, "buffer")) base_buffers_.push_back(buffer);

  for (const std::string& part : order) {
    const std::int64_t begin = numel_;
    for (const auto& [name, parameter] : by_part[part]) add(name, parameter, part);
    auto shape = granularity == peft::Granularity::kTensor
                     ? by_part[part].front().second.sizes().vec()
                     : std::vector<std::int64_t>{numel_ - begin};
    layers_.push_back({part, shape});
    parts_.push_back({part, begin, std::move(shape)});
  }
  description_ = layout_ + others + describe_bases(module);
  if (!device_.is_cpu()) description_ += "in GPU memory\n";
}

void OuterParameters::add(const std::string& name, const at::Tensor& tensor,
                          const std::string& part) {
  layout_ += concat("parameter ", name, " ", tensor.sizes(), " ", tensor.scalar_type(), " in ",
                    part, "\n");
  trained_.push_back(tensor);
  names_.push_back(name);
  numel_ += tensor.numel();
}

std::vector<at::Tensor> OuterParameters::buffers() const {
  std::vector<at::Tensor> all;
  for (const auto* some : {&buffers_, &base_buffers_})
    for (const at::Tensor& buffer : *some) all.push_back(buffer.detach());
  return all;
}

std::vector<at::Tensor> OuterParameters::at_the_start() const {
  std::vector<at::Tensor> all = buffers();
  for (const Watched& watched : watched_) all.push_back(watched.tensor.detach());
  return all;
}

void OuterParameters::check_unchanged() const {
  for (const Watched& watched : watched_) {
    const at::Tensor& now = watched.tensor;
    check(now.requires_grad() == watched.trained, "parameter '", watched.name, "' was ",
          watched.trained ? "trained" : "frozen", " when the OuterOptimizer was made and is ",
          watched.trained ? "frozen" : "trained", " now; make another OuterOptimizer");
    check(now.scalar_type() == watched.dtype && now.device() == device_ &&
              now.sizes() == watched.shape,
          "parameter '", watched.name, "' was ", watched.dtype, " ", at::IntArrayRef(watched.shape),
          " on ", device_.is_cpu() ? std::string("the CPU") : device_.str(),
          " when the OuterOptimizer was made and is ", now.scalar_type(), " ", now.sizes(), " on ",
          now.device(), " now; convert a module before, or make another OuterOptimizer");
  }
}

}  // namespace thinwire::detail
