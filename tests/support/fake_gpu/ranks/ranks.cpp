#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

#include <cstdlib>

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "thinwire/comm/backend/gloo/backend.h"

namespace thinwire::testing {
namespace {

using c10d::ProcessGroup;

constexpr std::chrono::milliseconds kGlooTimeout = std::chrono::seconds(20);

c10::intrusive_ptr<c10d::Backend> gloo(const GpuRanks& ranks, const std::string& name) {
  return comm::make_gloo_backend(
      c10::make_intrusive<c10d::PrefixStore>(name + "/gloo", ranks.store), ranks.rank, ranks.size,
      {.timeout = kGlooTimeout, .hostname = "127.0.0.1"});
}

c10::intrusive_ptr<ProcessGroup> group_of(const GpuRanks& ranks, const std::string& name) {
  return c10::make_intrusive<ProcessGroup>(
      c10::make_intrusive<c10d::PrefixStore>(name + "/group", ranks.store), ranks.rank, ranks.size);
}

}  // namespace

GpuRanks& GpuRanks::get() {
  static auto* ranks = [] {
    auto* made = new GpuRanks;
    if (const char* rank = std::getenv("FAKE_GPU_RANK")) {
      made->rank = std::atoi(rank);
      made->size = std::atoi(std::getenv("FAKE_GPU_RANKS"));
      made->store = c10::make_intrusive<c10d::FileStore>(std::getenv("FAKE_GPU_STORE"), made->size);
    }
    return made;
  }();
  return *ranks;
}

c10::intrusive_ptr<ProcessGroup> GpuRanks::nccl_group(const std::string& name,
                                                      std::chrono::milliseconds timeout) const {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(
      c10::make_intrusive<c10d::PrefixStore>(name + "/nccl", store), rank, size, options);
  nccl->setBoundDeviceId(device());
  auto group = group_of(*this, name);
  group->setDefaultBackend(ProcessGroup::BackendType::NCCL);
  group->setBackend(at::kCUDA, ProcessGroup::BackendType::NCCL, nccl);
  group->setBackend(at::kCPU, ProcessGroup::BackendType::GLOO, gloo(*this, name));
  return group;
}

c10::intrusive_ptr<ProcessGroup> GpuRanks::gloo_group(const std::string& name) const {
  const auto backend = gloo(*this, name);
  auto group = group_of(*this, name);
  group->setDefaultBackend(ProcessGroup::BackendType::GLOO);
  group->setBackend(at::kCUDA, ProcessGroup::BackendType::GLOO, backend);
  group->setBackend(at::kCPU, ProcessGroup::BackendType::GLOO, backend);
  return group;
}

}  // namespace thinwire::testing
