#include "thinwire/comm/failure/watched_group.h"

#include <map>
#include <string>

#include <ATen/core/ivalue.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include "thinwire/comm/failure/guard.h"

namespace thinwire::comm {
namespace {

using c10d::Backend;
using c10d::ProcessGroup;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Tensors = std::vector<at::Tensor>;

// How the collectives that this thread starts are named in messages; null: by their kind.
struct OperationName {
  const std::string& operation;
  std::uint64_t sequence;
};
thread_local const OperationName* operation_name = nullptr;

class WatchedWork final : public c10d::Work {
 public:
  WatchedWork(c10::intrusive_ptr<ProcessGroup> group, WorkPtr work, std::string operation,
              std::uint64_t sequence)
      : Work(group->getRank()),
        group_(std::move(group)),
        work_(std::move(work)),
        operation_(std::move(operation)),
        sequence_(sequence) {}

  bool wait(std::chrono::milliseconds /*timeout*/) override {
    comm::wait(*group_, work_, operation_, sequence_);
    return true;
  }
  bool isCompleted() override { return work_->isCompleted(); }
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  Tensors result() override { return work_->result(); }
  void synchronize() override { work_->synchronize(); }
  void abort() override { work_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return work_->getFuture(); }

 private:
  c10::intrusive_ptr<ProcessGroup> group_;
  WorkPtr work_;
  std::string operation_;
  std::uint64_t sequence_;
};

class WatchedBackend final : public Backend {
 public:
  WatchedBackend(c10::intrusive_ptr<ProcessGroup> group, c10::intrusive_ptr<Backend> backend)
      : Backend(backend->getRank(), backend->getSize()),
        group_(std::move(group)),
        backend_(std::move(backend)) {}

  const std::string getBackendName() const override { return backend_->getBackendName(); }
  c10::intrusive_ptr<Options> getBackendOptions() override { return backend_->getBackendOptions(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return watch(backend_->broadcast(tensors, options), "broadcast");
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return watch(backend_->allreduce(tensors, options), "all_reduce");
  }

 private:
  WorkPtr watch(WorkPtr work, const char* operation) {
    const std::uint64_t call = calls_++;
    if (operation_name != nullptr)
      return c10::make_intrusive<WatchedWork>(group_, std::move(work), operation_name->operation,
                                              operation_name->sequence);
    return c10::make_intrusive<WatchedWork>(group_, std::move(work), operation, call);
  }

  c10::intrusive_ptr<ProcessGroup> group_;
  c10::intrusive_ptr<Backend> backend_;
  std::uint64_t calls_ = 0;
};

}  // namespace

c10::intrusive_ptr<ProcessGroup> watched(const c10::intrusive_ptr<ProcessGroup>& group) {
  auto result =
      c10::make_intrusive<ProcessGroup>(group->getStore(), group->getRank(), group->getSize());
  // Of no type that c10d knows: its Logger takes what calls itself Gloo for a ProcessGroupGloo and
  // reads that object's options.
  result->setDefaultBackend(ProcessGroup::BackendType::CUSTOM);
  result->setBoundDeviceId(group->getBoundDeviceId());
  // One backend may serve several device types.
  std::map<const Backend*, c10::intrusive_ptr<Backend>> made;
  for (const auto& device : group->getDeviceTypes()) {
    const auto backend = group->getBackend(device.type());
    auto& watching = made[backend.get()];
    if (watching == nullptr) watching = c10::make_intrusive<WatchedBackend>(group, backend);
    const auto type = ProcessGroup::strToBackendType(backend->getBackendName());
    // Those of one type would be one to c10d: one that is custom itself, beside the group's own,
    // which is so here, gets a type that nobody has.
    const auto own = group->getBackendType();
    result->setBackend(device.type(),
                       type == own ? ProcessGroup::BackendType::CUSTOM
                       : type == ProcessGroup::BackendType::CUSTOM ? ProcessGroup::BackendType::UCC
                                                                   : type,
                       watching);
  }
  return result;
}

void broadcast(const c10::intrusive_ptr<ProcessGroup>& watched_group,
               const std::vector<at::Tensor>& tensors, int root, const std::string& operation,
               std::uint64_t sequence) {
  if (tensors.empty() || watched_group->getSize() == 1) return;
  constexpr std::size_t kAtOnce = std::size_t{250} << 20;
  const OperationName name{operation, sequence};
  guard(*watched_group, operation, sequence, [&] {
    operation_name = &name;
    const auto restore = c10::make_scope_exit([] { operation_name = nullptr; });
    c10d::broadcast_coalesced(watched_group, tensors, kAtOnce, root);
  });
}

}  // namespace thinwire::comm
