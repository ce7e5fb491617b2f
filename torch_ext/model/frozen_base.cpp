#include "thinwire/torch_ext/model/frozen_base.h"

#include <unordered_set>

#include "thinwire/comm/average/device_plan.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/join/rank_local.h"
#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/content_hash.h"

namespace thinwire {
namespace detail {
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
      if (comm::is_rank_local(item.value())) continue;
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
    if (tensor.defined() && !comm::is_rank_local(tensor) &&
        seen.insert(tensor.unsafeGetTensorImpl()).second)
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

}  // namespace detail

void broadcast_base(const torch::nn::Module& module,
                    const c10::intrusive_ptr<c10d::ProcessGroup>& group, int root) {
  check(group != nullptr, "broadcast_base() needs a process group, got a null pointer");
  std::vector<at::Tensor> tensors;
  comm::agree_on_result(*group, comm::next_name(*group, "base"), "the base of the adapter", [&] {
    check(root >= 0 && root < group->getSize(), "root ", root, " is not one of ", group->getSize(),
          " ranks");
    std::string text = concat("root ", root, "\n");
    for (const at::Tensor& tensor : detail::base_tensors(module)) {
      if (!tensor.is_cpu()) comm::check_device_group(*group, tensor.device());
      text += concat(toString(tensor.scalar_type()), ' ', tensor.sizes(),
                     tensor.is_cpu() ? "\n" : " in GPU memory\n");
      tensors.push_back(tensor.detach());
    }
    check(!tensors.empty(), "the module is no adapter and holds none: there is no base");
    return text;
  });
  comm::broadcast(comm::watched(group), tensors, root, "broadcast of the base", 0);
}

}  // namespace thinwire
