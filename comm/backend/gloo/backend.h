// Gloo, the CPU backend inside LibTorch, made from C++.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

struct GlooOptions {
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
  // Address or interface to listen on; `interface` wins. See ProcessGroupOptions for the default.
  std::string hostname = {};
  std::string interface = {};
};

// Throws InvalidArgument where the interface or hostname cannot be listened on: to be known before
// other ranks wait for this one.
void check_gloo_backend(const GlooOptions& options);

// Connects `size` ranks through `store`. Collective: returns once this rank is connected to all.
// Throws InvalidArgument where the interface or hostname cannot be listened on, and whatever Gloo
// throws when a peer does not come within the timeout. Calls on the result must be made in the
// same order on every rank; it takes calls from one thread at a time.
c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size, const GlooOptions& options);

// Connections of their own between the ranks `ranks` of `backend`, this one among them, numbered in
// this order, listening where it listens, with its present timeout. Collective over them. Throws
// InvalidArgument where `backend` is not Gloo. Warns, once, where torch's flight recorder is on.
c10::intrusive_ptr<c10d::Backend> reconnect_gloo_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const c10::intrusive_ptr<c10d::Store>& store,
    const std::vector<int>& ranks);

// Closes all connections of `backend`: what the other ranks wait for with this one fails there at
// once. What this rank waits for itself may last until its timeout. Of another backend than Gloo
// nothing.
void close_gloo_backend(c10d::Backend& backend);

// See prepare_process().
void prepare_gloo_backend();
// Whether torch records the Gloo operations of this process; see Note [Flight recorder].
bool flight_recorder_is_on();

}  // namespace thinwire::comm
