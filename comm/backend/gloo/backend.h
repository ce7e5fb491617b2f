// Gloo, the CPU backend inside LibTorch, made from C++.
#pragma once

#include <chrono>
#include <string>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

struct GlooOptions {
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
  // Address or interface to listen on; `interface` wins. See ProcessGroupOptions for the default.
  std::string hostname = {};
  std::string interface = {};
};

// Connects `size` ranks through `store`. Collective: returns once this rank is connected to all.
// Throws InvalidArgument where the interface or hostname cannot be listened on, and whatever Gloo
// throws when a peer does not come within the timeout. Calls on the result must be made in the
// same order on every rank; it takes calls from one thread at a time.
c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size, const GlooOptions& options);

// A second set of connections between the ranks of `backend`, listening where it listens, with its
// present timeout. Throws InvalidArgument where `backend` is not Gloo.
c10::intrusive_ptr<c10d::Backend> duplicate_gloo_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const c10::intrusive_ptr<c10d::Store>& store);

}  // namespace thinwire::comm
