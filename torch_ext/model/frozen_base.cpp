#include "thinwire/torch_ext/model/frozen_base.h"

#include <unordered_set>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/content_hash.h"

namespace thinwire::detail {
namespace {

// Calls visit(path, base) for every base below the module.
template <typename Visit>
void for_each_base(const torch::nn::Module& module, Visit visit) {
  const auto look = [&](const std::string& path, const torch::nn::Module& candidate) {
    if (const auto* adapter = dynamic_cast<const StandsOnBase*>(&candidate))
      visit(path, adapter->base());
  };
  look("", module);
  for (const auto& item : module.named_modules("", /*include_self=*/false))
    look(item.key(), *item.value());
}

std::string hash_of(const torch::nn::Module& base) {
  peft::ContentHash hash;
  const auto add = [&](const char* kind, const auto& items) {
    for (const auto& item : items) {
      const at::Tensor values = item.value().detach().cpu().contiguous();
      hash.update(concat(kind, ' ', item.key(), ' ', toString(values.scalar_type()), ' ',
                         values.sizes(), '\n'));
      hash.update(bytes_of(values));
    }
  };
  add("parameter", base.named_parameters());
  add("buffer", base.named_buffers());
  return hash.hex();
}

void add_once(const std::vector<at::Tensor>& tensors, std::vector<at::Tensor>& into) {
  std::unordered_set<const c10::TensorImpl*> seen;
  for (const at::Tensor& tensor : into) seen.insert(tensor.unsafeGetTensorImpl());
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined() && seen.insert(tensor.unsafeGetTensorImpl()).second)
      into.push_back(tensor);
}

}  // namespace

std::string describe_bases(const torch::nn::Module& module) {
  std::string text;
  for_each_base(module, [&](const std::string& path, const torch::nn::Module& base) {
    text += concat("base of ", path.empty() ? "the module" : path, " has the hash ", hash_of(base),
                   "\n");
  });
  return text;
}

std::vector<at::Tensor> base_buffers(const torch::nn::Module& module) {
  std::vector<at::Tensor> found;
  for_each_base(module, [&](const std::string&, const torch::nn::Module& base) {
    add_once(base.buffers(), found);
  });
  return found;
}

std::vector<at::Tensor> base_tensors(const torch::nn::Module& module) {
  std::vector<at::Tensor> found;
  for_each_base(module, [&](const std::string&, const torch::nn::Module& base) {
    add_once(base.parameters(), found);
    add_once(base.buffers(), found);
  });
  return found;
}

}  // namespace thinwire::detail
