// The ranks of an MPI job, for tests started by thinwire_mpi_test().
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/comm/backend/gloo/backend.h"
#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/mpi/runtime.h"

namespace thinwire::testing {

// One rank's view: a backend over MPI, one over Gloo on loopback, and a store, all of the same
// ranks. Made once per process, by all ranks together.
struct MpiRanks {
  int rank = 0;
  int size = 1;
  c10::intrusive_ptr<c10d::Backend> mpi, gloo;
  c10::intrusive_ptr<c10d::Store> store;

  static MpiRanks& get() {
    static MpiRanks ranks;
    return ranks;
  }

  // A further backend over MPI, for tests that break it or want messages cut. Collective.
  c10::intrusive_ptr<c10d::Backend> another(std::size_t max_message_bytes = 0) const {
    return comm::make_mpi_backend(rank, size, kTimeout, max_message_bytes);
  }

 private:
  static constexpr std::chrono::milliseconds kTimeout = std::chrono::seconds(30);

  MpiRanks() {
    const auto world = comm::mpi::world();
    rank = world.rank;
    size = world.size;
    mpi = another();
    c10d::TCPStoreOptions options;
    options.timeout = kTimeout;
    options.isServer = rank == 0;
    options.waitWorkers = false;
    options.port = 0;  // a free one, which rank 0 tells the others
    if (rank == 0) store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    const auto* server = dynamic_cast<c10d::TCPStore*>(store.get());
    std::vector<at::Tensor> port = {at::full({1}, server ? server->getPort() : 0, at::kLong)};
    mpi->broadcast(port, {})->wait();
    options.port = static_cast<std::uint16_t>(port[0].item<std::int64_t>());
    if (rank != 0) store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    gloo = comm::make_gloo_backend(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank,
                                   size, {.timeout = kTimeout, .hostname = "127.0.0.1"});
  }
};

}  // namespace thinwire::testing
