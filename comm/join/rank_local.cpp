#include "thinwire/comm/join/rank_local.h"

#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <mutex>
#include <unordered_map>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// A weak pointer keeps the address of a tensor that is gone from being given to another one.
struct RankLocalTensors {
  std::mutex mutex;
  std::unordered_map<const c10::TensorImpl*,
                     c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>>
      marked;

  static RankLocalTensors& get() {
    // Never destroyed: parameters with static storage may outlive any other object.
    static auto* tensors = new RankLocalTensors;
    return *tensors;
  }
};

}  // namespace

void mark_rank_local(const at::Tensor& tensor) {
  check(tensor.defined(), "an undefined tensor cannot be this rank's own");
  RankLocalTensors& all = RankLocalTensors::get();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.marked, [](const auto& entry) { return entry.second.expired(); });
  all.marked.try_emplace(tensor.unsafeGetTensorImpl(), tensor.getIntrusivePtr());
}

bool is_rank_local(const at::Tensor& tensor) {
  RankLocalTensors& all = RankLocalTensors::get();
  const std::lock_guard lock(all.mutex);
  const auto found = all.marked.find(tensor.unsafeGetTensorImpl());
  return found != all.marked.end() && !found->second.expired();
}

}  // namespace thinwire::comm
