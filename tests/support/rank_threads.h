// Ranks as threads of one process, for tests of everything that communicates.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/backend/process_group.h"

namespace thinwire::testing {

// What one rank's function gets.
struct RankContext {
  int rank = 0;
  int size = 1;
  c10::intrusive_ptr<c10d::Store> store;         // the same store for all ranks
  c10::intrusive_ptr<c10d::ProcessGroup> group;  // Gloo on 127.0.0.1; null where not wanted
};

struct RankOptions {
  // Timeout of the group's collectives.
  std::chrono::milliseconds timeout = std::chrono::seconds(60);
  // A run that takes longer ends the test program with an error naming the ranks still running:
  // threads that hang in a collective cannot be stopped otherwise.
  std::chrono::milliseconds watchdog = std::chrono::seconds(120);
  bool make_group = true;
};

// Runs `body` on `size` threads, each a rank of one group, waits for all of them and rethrows the
// error of the rank that failed first. A group outlives all the threads, so that a rank that ends
// early does not look like a dead one; a test that wants a dead one resets its ctx.group.
inline void run_ranks(int size, const std::function<void(RankContext&)>& body,
                      const RankOptions& options = {}) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<bool> done;
    std::exception_ptr first_error;
  };
  Shared shared;
  shared.done.assign(static_cast<std::size_t>(size), false);
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<RankContext> contexts(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      RankContext& context = contexts[static_cast<std::size_t>(rank)];
      context.rank = rank;
      context.size = size;
      context.store = store;
      std::exception_ptr error;
      try {
        if (options.make_group) {
          comm::ProcessGroupOptions group_options;
          group_options.timeout = options.timeout;
          group_options.hostname = "127.0.0.1";
          context.group = comm::make_process_group(
              "gloo", c10::make_intrusive<c10d::PrefixStore>("group", store), rank, size,
              group_options);
        }
        body(context);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(shared.mutex);
      if (error != nullptr && shared.first_error == nullptr) shared.first_error = error;
      shared.done[static_cast<std::size_t>(rank)] = true;
      shared.changed.notify_all();
    });
  }
  {
    std::unique_lock lock(shared.mutex);
    const auto all_done = [&] {
      for (bool done : shared.done)
        if (!done) return false;
      return true;
    };
    if (!shared.changed.wait_for(lock, options.watchdog, all_done)) {
      for (int rank = 0; rank < size; ++rank)
        if (!shared.done[static_cast<std::size_t>(rank)])
          std::fprintf(stderr, "run_ranks: rank %d of %d still runs after %lld ms\n", rank, size,
                       static_cast<long long>(options.watchdog.count()));
      std::fflush(stderr);
      std::_Exit(EXIT_FAILURE);
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (shared.first_error != nullptr) std::rethrow_exception(shared.first_error);
}

}  // namespace thinwire::testing
