#include "thinwire/comm/backend/abandon.h"

#include <exception>
#include <set>
#include <thread>
#include <utility>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/wrapper_backend.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

// One backend may serve several device types.
std::set<c10::intrusive_ptr<c10d::Backend>> backends_of(c10d::ProcessGroup& group) {
  std::set<c10::intrusive_ptr<c10d::Backend>> backends;
  for (const auto& device : group.getDeviceTypes())
    backends.insert(unwrapped(group.getBackend(device.type())));
  return backends;
}

}  // namespace

void abandon(c10d::ProcessGroup& group) noexcept {
  try {
    for (const auto& backend : backends_of(group)) {
      close_gloo_backend(*backend);
      if (backend->getBackendName() == "nccl") backend->abort();
    }
  } catch (const std::exception& error) {
    log::debug("a process group was not ended in good order: ", error.what());
  }
}

void retire(std::shared_ptr<void> thing) {
  std::thread([thing = std::move(thing)]() mutable { thing.reset(); }).detach();
}

void set_timeout(c10d::ProcessGroup& group, std::chrono::milliseconds timeout) {
  for (const auto& backend : backends_of(group)) backend->setTimeout(timeout);
}

}  // namespace thinwire::comm
