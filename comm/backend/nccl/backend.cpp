#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "thinwire/comm/backend/nccl/functions.h"
#include "thinwire/comm/backend/part/part.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

using c10d::ProcessGroupNCCL;

// One that ends as destroy_process_group() ends it, which programs in C++ do not have: without that
// c10d complains at its end. On the way of an exception other ranks may be gone, so that nothing is
// waited for.
class EndingNccl final : public ProcessGroupNCCL {
 public:
  using ProcessGroupNCCL::ProcessGroupNCCL;
  ~EndingNccl() override {
    if (ended_) return;
    try {
      if (std::uncaught_exceptions() > exceptions_) {
        ProcessGroupNCCL::abort();
      } else {
        ProcessGroupNCCL::shutdown();
      }
    } catch (const std::exception& error) {
      log::error("the communicators of NCCL cannot be closed: ", error.what());
    }
  }
  void abort() override {
    ended_ = true;
    ProcessGroupNCCL::abort();
  }
  void shutdown() override {
    ended_ = true;
    ProcessGroupNCCL::shutdown();
  }

 private:
  const int exceptions_ = std::uncaught_exceptions();
  std::atomic<bool> ended_ = false;
};

// Zero also where there is no driver; cudaGetDeviceCount then fails and starts nothing.
int gpu_count(std::string& reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  reason = cudaGetErrorString(status);
  cudaGetLastError();  // so that later calls do not report this one
  return 0;
}

c10::intrusive_ptr<c10d::Backend> make(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                       int size, std::chrono::milliseconds timeout,
                                       c10::Device device) {
  auto options = ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  c10::intrusive_ptr<c10d::Backend> backend =
      c10::make_intrusive<EndingNccl>(store, rank, size, std::move(options));
  backend->setBoundDeviceId(device);
  return backend;
}

bool usable() {
  std::string reason;
  return gpu_count(reason) > 0;
}

void check_device(int cuda_device) {
  std::string reason;
  const int count = gpu_count(reason);
  check(count > 0, "the backend nccl needs a GPU and this host has none",
        reason.empty() ? "" : concat(" (", reason, ")"), "; use gloo or mpi for CPU tensors");
  check(cuda_device >= 0 && cuda_device < count, "there is no CUDA device ", cuda_device,
        ", this process sees ", count);
}

c10::intrusive_ptr<c10d::Backend> make_on_device(const c10::intrusive_ptr<c10d::Store>& store,
                                                 int rank, int size,
                                                 std::chrono::milliseconds timeout,
                                                 int cuda_device) {
  check_device(cuda_device);
  return make(store, rank, size, timeout,
              c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda_device)));
}

c10::intrusive_ptr<c10d::Backend> reconnect(const c10::intrusive_ptr<c10d::Backend>& backend,
                                            const c10::intrusive_ptr<c10d::Store>& store,
                                            const std::vector<int>& ranks) {
  auto* nccl = dynamic_cast<ProcessGroupNCCL*>(backend.get());
  check(nccl != nullptr, "backend '", backend->getBackendName(), "' is not NCCL");
  // A program that never named its device runs on its current one.
  int current = 0;
  const auto bound = nccl->getBoundDeviceId();
  if (!bound.has_value())
    check(cudaGetDevice(&current) == cudaSuccess, "CUDA has no current device");
  const c10::Device device =
      bound.value_or(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(current)));
  const auto place = std::ranges::find(ranks, nccl->getRank());
  THINWIRE_ASSERT(place != ranks.end());
  return make(store, static_cast<int>(place - ranks.begin()), static_cast<int>(ranks.size()),
              nccl->getOptions()->timeout, device);
}

}  // namespace
}  // namespace thinwire::comm

const thinwire::comm::NcclFunctions* thinwire_nccl_functions() {
  using namespace thinwire::comm;
  static constexpr NcclFunctions functions = {kPartVersion, usable, check_device, make_on_device,
                                              reconnect};
  return &functions;
}
