// A block of threads on the host: the context with which tests run the bodies of CUDA kernels, see
// compressors/kernels/block.h.
#pragma once

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace thinwire::testing {

class HostBlock {
 public:
  HostBlock(std::uint32_t thread, std::uint32_t size, std::barrier<>& barrier)
      : thread_(thread), size_(size), barrier_(barrier) {}

  std::uint32_t thread() const { return thread_; }
  std::uint32_t size() const { return size_; }
  void sync() { barrier_.arrive_and_wait(); }

 private:
  std::uint32_t thread_, size_;
  std::barrier<>& barrier_;
};

// Calls body(block) on `threads` threads, each with its own view of one block. Nothing in `body`
// may throw: the others would wait for ever.
template <typename Body>
void run_on_host_block(std::uint32_t threads, const Body& body) {
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  std::vector<std::jthread> running;
  for (std::uint32_t thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread]() noexcept {
      HostBlock block(thread, threads, barrier);
      body(block);
    });
  }
}

}  // namespace thinwire::testing
