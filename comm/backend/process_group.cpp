#include "thinwire/comm/backend/process_group.h"

#include <algorithm>
#include <numeric>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/reconnect.h"
#include "thinwire/comm/backend/staged.h"
#include "thinwire/comm/backend/wrapper_backend.h"
#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/meet.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire::comm {
namespace {

using c10d::Backend;
using c10d::PrefixStore;
using c10d::ProcessGroup;

const std::vector<std::string> kBackends = {"nccl", "mpi", "gloo"};

// After the number of a rank of MPI.
constexpr std::string_view kHasGpus = " with GPUs";

GlooOptions gloo_options(const ProcessGroupOptions& options) {
  return {options.timeout, options.hostname, options.interface};
}

c10::intrusive_ptr<Backend> make_backend(const std::string& name,
                                         const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                         const std::vector<std::string>& places,
                                         const ProcessGroupOptions& options) {
  const auto size = static_cast<int>(places.size());
  if (name == "gloo") return make_gloo_backend(store, rank, size, gloo_options(options));
  if (name == "mpi") {
    std::vector<int> ranks;
    for (const std::string& place : places) ranks.push_back(std::stoi(place));
    return make_mpi_backend(ranks, options.timeout);
  }
  return make_nccl_backend(store, rank, size, options.timeout, options.cuda_device);
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
  prepare_process();
  std::string place;  // among all the processes of MPI
  try {
    if (name == "mpi") {
      check_mpi_backend(rank, size);
      place = std::to_string(mpi_rank());
      if (has_gpus()) place += kHasGpus;
    }
    if (name == "nccl") check_nccl_backend(options.cuda_device);
    if (name != "mpi") check_gloo_backend(gloo_options(options));
  } catch (const InvalidArgument& error) {
    decline(store, rank, size, error.what());
    throw;
  }

  const auto places = meet(store, rank, size, name, options.timeout, place);
  auto group = c10::make_intrusive<ProcessGroup>(store, rank, size);
  const auto type = ProcessGroup::strToBackendType(name);
  group->setDefaultBackend(type);
  c10::intrusive_ptr<Backend> made, for_host, staged;
  const auto make = [&](const std::string& over) {
    return make_backend(over, c10::make_intrusive<PrefixStore>(over, store), rank, places, options);
  };
  try {
    made = make(name);
    if (name == "nccl") for_host = make("gloo");
    if (name == "mpi" &&
        std::ranges::all_of(places, [](const std::string& one) { return one.ends_with(kHasGpus); }))
      staged = make_staged_backend(make(name));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, concat("connecting the ", name, " process group"), 0, error_text(error));
  }
  if (name == "nccl")
    group->setBoundDeviceId(
        c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(options.cuda_device)));
  group->setBackend(name == "nccl" ? c10::DeviceType::CUDA : c10::DeviceType::CPU, type, made);
  // Gloo takes them through host memory.
  if (name == "gloo") group->setBackend(c10::DeviceType::CUDA, type, made);
  if (staged) group->setBackend(c10::DeviceType::CUDA, ProcessGroup::BackendType::CUSTOM, staged);
  if (for_host) group->setBackend(c10::DeviceType::CPU, ProcessGroup::BackendType::GLOO, for_host);
  return group;
}

c10::intrusive_ptr<ProcessGroup> duplicate(const c10::intrusive_ptr<ProcessGroup>& group,
                                           std::string_view name) {
  check(group != nullptr, "there is no process group to duplicate");
  check(group->getStore() != nullptr,
        "a process group without a store cannot be duplicated: make it with make_process_group() "
        "or give its constructor the store");
  check(!name.empty(), "a duplicate of a process group needs a name");
  std::vector<int> all(static_cast<std::size_t>(group->getSize()));
  std::iota(all.begin(), all.end(), 0);
  return connect_again(group, c10::make_intrusive<DuplicateStore>(name, group->getStore()), all,
                       concat("duplicating a process group as '", name, "'"), /*bare=*/true);
}

void prepare_process() {
  prepare_gloo_backend();
  prepare_mpi_backend();
}

bool orders_streams(ProcessGroup& group, c10::DeviceType device) {
  return device == c10::DeviceType::CUDA &&
         unwrapped(group.getBackend(device))->getBackendName() == "nccl";
}

std::string backend_name(const ProcessGroup& group) {
  return group.getDefaultBackend()->getBackendName();
}

}  // namespace thinwire::comm
