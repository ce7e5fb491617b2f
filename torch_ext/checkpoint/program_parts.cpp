#include "thinwire/torch_ext/checkpoint/program_parts.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/api/include/torch/nn/module.h>
#include <torch/csrc/api/include/torch/optim/optimizer.h>
#include <torch/csrc/api/include/torch/serialize.h>

#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>

#include "thinwire/common/error.h"
#include "thinwire/torch_ext/checkpoint/optimizer_state.h"

namespace thinwire::detail {
namespace {

constexpr const char* kArchive = "archive";
constexpr const char* kMoments = "moments/";

at::Tensor archive_of(const torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::ostringstream out;
  archive.save_to(out);
  return text_tensor(std::move(out).str());
}

// An optimizer without its moments, until this ends.
class Emptied {
 public:
  explicit Emptied(torch::optim::Optimizer& optimizer) : optimizer_(optimizer) {
    std::swap(optimizer_.state(), state_);
  }
  ~Emptied() { std::swap(optimizer_.state(), state_); }
  Emptied(const Emptied&) = delete;
  Emptied& operator=(const Emptied&) = delete;

 private:
  torch::optim::Optimizer& optimizer_;
  std::remove_reference_t<decltype(optimizer_.state())> state_;
};

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

NamedTensors optimizer_tensors(torch::optim::Optimizer& optimizer) {
  if (!has_known_moments(optimizer)) return {{kArchive, archive_of(optimizer)}};
  NamedTensors tensors;
  insert_part(tensors, kMoments, numbered_moments(optimizer));
  // The archive gets the rest: options of the groups, and who is in them.
  const Emptied emptied(optimizer);
  tensors.emplace(kArchive, archive_of(optimizer));
  return tensors;
}

void load_optimizer_tensors(torch::optim::Optimizer& optimizer, const NamedTensors& saved) {
  std::istringstream in(text_of(saved, kArchive));
  torch::serialize::InputArchive archive;
  // Another rank may have saved it, on its device.
  const auto& groups = optimizer.param_groups();
  std::optional<at::Device> device;
  if (!groups.empty() && !groups.front().params().empty())
    device = groups.front().params().front().device();
  archive.load_from(in, device);
  // What the archive does not have is to be as in a new one, which load() would leave.
  optimizer.state().clear();
  optimizer.load(archive);
  const NamedTensors moments = part_of(saved, kMoments);
  if (!moments.empty()) load_numbered_moments(optimizer, moments);
}

}  // namespace thinwire::detail
