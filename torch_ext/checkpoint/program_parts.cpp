#include "thinwire/torch_ext/checkpoint/program_parts.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/api/include/torch/nn/module.h>
#include <torch/csrc/api/include/torch/optim/optimizer.h>
#include <torch/csrc/api/include/torch/serialize.h>

#include <optional>
#include <sstream>
#include <utility>

#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

constexpr const char* kArchive = "archive";

}  // namespace

NamedTensors module_tensors(const torch::nn::Module& module) {
  NamedTensors tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace(item.key(), item.value());
  for (const auto& item : module.named_buffers()) tensors.emplace(item.key(), item.value());
  return tensors;
}

void load_module(const std::string& what, torch::nn::Module& module, const NamedTensors& saved) {
  const at::NoGradGuard no_grad;
  auto tensors = module_tensors(module);
  for (const auto& [name, tensor] : saved)
    check(tensors.contains(name), what, " has '", name, "', which this module has not");
  for (auto& [name, tensor] : tensors) {
    const auto found = saved.find(name);
    check(found != saved.end(), what, " has no '", name, "'");
    check(found->second.sizes() == tensor.sizes() &&
              found->second.scalar_type() == tensor.scalar_type(),
          "'", name, "' of ", what, " is ", toString(found->second.scalar_type()), " ",
          found->second.sizes(), ", the module's ", toString(tensor.scalar_type()), " ",
          tensor.sizes());
  }
  for (auto& [name, tensor] : tensors) tensor.copy_(saved.at(name));
}

NamedTensors optimizer_archive(const torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::ostringstream out;
  archive.save_to(out);
  return {{kArchive, text_tensor(std::move(out).str())}};
}

void load_optimizer_archive(torch::optim::Optimizer& optimizer, const NamedTensors& saved) {
  std::istringstream in(text_of(saved, kArchive));
  torch::serialize::InputArchive archive;
  // Another rank may have saved it, on its device.
  const auto& groups = optimizer.param_groups();
  std::optional<at::Device> device;
  if (!groups.empty() && !groups.front().params().empty())
    device = groups.front().params().front().device();
  archive.load_from(in, device);
  optimizer.load(archive);
}

}  // namespace thinwire::detail
