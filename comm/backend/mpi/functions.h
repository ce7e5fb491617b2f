// What the library calls in its part for MPI: see Note [Parts].
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// The functions of backend.h, whose comments hold here.
struct MpiFunctions {
  using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
  using Milliseconds = std::chrono::milliseconds;

  const char* version;
  bool (*usable)();
  void (*check)(int rank, int size);
  int (*rank)();
  BackendPtr (*make_whole)(int rank, int size, Milliseconds timeout, std::size_t max_message_bytes);
  BackendPtr (*make)(const std::vector<int>& ranks, Milliseconds timeout,
                     std::size_t max_message_bytes);
  BackendPtr (*reconnect)(const BackendPtr& backend, const std::vector<int>& ranks);
};

}  // namespace thinwire::comm

extern "C" const thinwire::comm::MpiFunctions* thinwire_mpi_functions();
