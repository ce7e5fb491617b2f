#include "thinwire/comm/backend/process_group.h"

#include <map>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/wrapper_backend.h"
#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/comm/join/meet.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire::comm {
namespace {

using c10d::Backend;
using c10d::PrefixStore;
using c10d::ProcessGroup;

const std::vector<std::string> kBackends = {"nccl", "mpi", "gloo"};

c10::intrusive_ptr<Backend> make_backend(const std::string& name,
                                         const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                         int size, const ProcessGroupOptions& options) {
  if (name == "gloo")
    return make_gloo_backend(store, rank, size,
                             {options.timeout, options.hostname, options.interface});
  if (name == "mpi") return make_mpi_backend(rank, size, options.timeout);
  return make_nccl_backend(store, rank, size, options.timeout, options.cuda_device);
}

// The same ranks, connected once more, whoever made `backend`.
c10::intrusive_ptr<Backend> duplicate_backend(const c10::intrusive_ptr<Backend>& any,
                                              const c10::intrusive_ptr<c10d::Store>& store) {
  const c10::intrusive_ptr<Backend> backend = unwrapped(any);
  const std::string name = backend->getBackendName();
  if (name == "gloo") return duplicate_gloo_backend(backend, store);
  if (name == "mpi") return duplicate_mpi_backend(backend);
  if (name == "nccl") return duplicate_nccl_backend(backend, store);
  check(backend->supportsSplitting(), "a process group over '", name,
        "' cannot be duplicated: this backend has no split()");
  std::vector<int> all(static_cast<std::size_t>(backend->getSize()));
  for (int rank = 0; rank < backend->getSize(); ++rank) all[static_cast<std::size_t>(rank)] = rank;
  return backend->split(store, all, backend->getBackendOptions());
}

void check_known(const std::string& name) {
  for (const std::string& known : kBackends)
    if (name == known) return;
  const std::string nearest = nearest_name(name, kBackends);
  throw InvalidArgument(concat("unknown backend '", name, "', known are nccl, mpi and gloo",
                               nearest.empty() ? "" : concat("; did you mean ", nearest, "?")));
}

}  // namespace

std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  if (nccl_backend_usable()) names.emplace_back("nccl");
  if (mpi_backend_usable()) names.emplace_back("mpi");
  names.emplace_back("gloo");
  return names;
}

c10::intrusive_ptr<ProcessGroup> make_process_group(std::string_view backend,
                                                    c10::intrusive_ptr<c10d::Store> store, int rank,
                                                    int size, const ProcessGroupOptions& options) {
  const std::string name(backend);
  check_known(name);
  check(store != nullptr, "a process group needs a store");
  check(size >= 1, "a process group needs at least one rank, got size ", size);
  check(rank >= 0 && rank < size, "rank must be in [0, ", size, "), got ", rank);
  check(options.timeout.count() > 0, "the timeout must be positive, got ", options.timeout.count(),
        " ms");
  try {
    if (name == "mpi") check_mpi_backend(rank, size);
    if (name == "nccl") check_nccl_backend(options.cuda_device);
  } catch (const InvalidArgument& error) {
    decline(store, rank, size, error.what());
    throw;
  }

  meet(store, rank, size, name, options.timeout);
  auto group = c10::make_intrusive<ProcessGroup>(store, rank, size);
  const auto type = ProcessGroup::strToBackendType(name);
  group->setDefaultBackend(type);
  c10::intrusive_ptr<Backend> made;
  try {
    made = make_backend(name, c10::make_intrusive<PrefixStore>(name, store), rank, size, options);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, concat("connecting the ", name, " process group"), 0, error.what());
  }
  if (name == "nccl")
    group->setBoundDeviceId(
        c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(options.cuda_device)));
  group->setBackend(name == "nccl" ? c10::DeviceType::CUDA : c10::DeviceType::CPU, type, made);
  return group;
}

c10::intrusive_ptr<ProcessGroup> duplicate(const c10::intrusive_ptr<ProcessGroup>& group,
                                           std::string_view name) {
  check(group != nullptr, "there is no process group to duplicate");
  check(group->getStore() != nullptr,
        "a process group without a store cannot be duplicated: make it with make_process_group() "
        "or give its constructor the store");
  check(!name.empty(), "a duplicate of a process group needs a name");
  const auto store = c10::make_intrusive<DuplicateStore>(name, group->getStore());
  auto copy = c10::make_intrusive<ProcessGroup>(store, group->getRank(), group->getSize());
  copy->setDefaultBackend(group->getBackendType());
  copy->setBoundDeviceId(group->getBoundDeviceId());

  // One backend may serve several device types, and a group may hold several backends. Ordered by
  // device so that every rank duplicates them in the same order.
  std::map<c10::DeviceType, c10::intrusive_ptr<Backend>> backends;
  for (const auto& device : group->getDeviceTypes())
    backends[device.type()] = group->getBackend(device.type());
  check(!backends.empty(), "a process group without a backend cannot be duplicated");
  std::map<const Backend*, c10::intrusive_ptr<Backend>> copies;
  meet(store, group->getRank(), group->getSize(), backend_name(*group),
       group->getDefaultBackend()->getBackendOptions()->timeout);
  try {
    for (const auto& [device, backend] : backends) {
      auto& made = copies[backend.get()];
      if (made == nullptr)
        made = duplicate_backend(
            backend, c10::make_intrusive<PrefixStore>(backend->getBackendName(), store));
      copy->setBackend(device, ProcessGroup::strToBackendType(backend->getBackendName()), made);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, concat("duplicating a process group as '", name, "'"), 0, error.what());
  }
  return copy;
}

std::string backend_name(const ProcessGroup& group) {
  return group.getDefaultBackend()->getBackendName();
}

}  // namespace thinwire::comm
