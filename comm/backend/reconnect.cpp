#include "thinwire/comm/backend/reconnect.h"

#include <algorithm>
#include <map>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/staged.h"
#include "thinwire/comm/backend/wrapper_backend.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/meet.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using c10d::Backend;
using c10d::ProcessGroup;

// Whoever made `backend`.
c10::intrusive_ptr<Backend> reconnect_backend(const c10::intrusive_ptr<Backend>& backend,
                                              const c10::intrusive_ptr<c10d::Store>& store,
                                              const std::vector<int>& ranks) {
  const std::string name = backend->getBackendName();
  if (name == "gloo") return reconnect_gloo_backend(backend, store, ranks);
  if (name == "mpi") return reconnect_mpi_backend(backend, ranks);
  if (name == "nccl") return reconnect_nccl_backend(backend, store, ranks);
  check(backend->supportsSplitting(), "a process group over '", name,
        "' cannot be duplicated or split: this backend has no split()");
  return backend->split(store, ranks, backend->getBackendOptions());
}

}  // namespace

c10::intrusive_ptr<ProcessGroup> connect_again(const c10::intrusive_ptr<ProcessGroup>& group,
                                               const c10::intrusive_ptr<c10d::Store>& store,
                                               const std::vector<int>& ranks,
                                               const std::string& operation, bool bare) {
  const auto place = std::ranges::find(ranks, group->getRank());
  THINWIRE_ASSERT(place != ranks.end());
  const auto rank = static_cast<int>(place - ranks.begin());
  const auto size = static_cast<int>(ranks.size());
  auto made_group = c10::make_intrusive<ProcessGroup>(store, rank, size);
  made_group->setDefaultBackend(group->getBackendType());
  made_group->setBoundDeviceId(group->getBoundDeviceId());

  // One backend may serve several device types, and a group may hold several backends. Ordered by
  // device so that every rank connects them in the same order.
  std::map<c10::DeviceType, c10::intrusive_ptr<Backend>> backends;
  for (const auto& device : group->getDeviceTypes())
    backends[device.type()] = group->getBackend(device.type());
  check(!backends.empty(), "a process group without a backend cannot be duplicated or split");
  const auto default_backend = group->getDefaultBackend();
  meet(store, rank, size, default_backend->getBackendName(),
       default_backend->getBackendOptions()->timeout);
  std::map<const Backend*, c10::intrusive_ptr<Backend>> made;
  try {
    for (const auto& [device, backend] : backends) {
      auto& mine = made[backend.get()];
      if (mine == nullptr) {
        const bool staged = is_staged(*backend);
        mine = reconnect_backend(
            bare || staged ? unwrapped(backend) : backend,
            c10::make_intrusive<c10d::PrefixStore>(backend->getBackendName(), store), ranks);
        if (staged) mine = make_staged_backend(mine);
      }
      made_group->setBackend(device, ProcessGroup::strToBackendType(backend->getBackendName()),
                             mine);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, operation, 0, error_text(error));
  }
  return made_group;
}

}  // namespace thinwire::comm
