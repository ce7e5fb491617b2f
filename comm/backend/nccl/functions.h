// What the library calls in its part for NCCL: see Note [Parts].
#pragma once

#include <chrono>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// The functions of backend.h, whose comments hold here.
struct NcclFunctions {
  using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
  using StorePtr = c10::intrusive_ptr<c10d::Store>;

  const char* version;
  bool (*usable)();
  void (*check)(int cuda_device);
  BackendPtr (*make)(const StorePtr& store, int rank, int size, std::chrono::milliseconds timeout,
                     int cuda_device);
  BackendPtr (*reconnect)(const BackendPtr& backend, const StorePtr& store,
                          const std::vector<int>& ranks);
};

}  // namespace thinwire::comm

extern "C" const thinwire::comm::NcclFunctions* thinwire_nccl_functions();
