// The first thing that the ranks of a new process group do: see that all of them came, and that
// they mean the same group.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// Posts this rank in the store and waits for the others. Returns the `word` of every rank, by rank
// (one line each). Throws CommError naming the ranks that did not come within the timeout;
// InvalidArgument where two ranks claim one number, where the ranks disagree on backend or size, or
// where one of them called decline(): what one rank finds, all throw at once.
std::vector<std::string> meet(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                              const std::string& backend, std::chrono::milliseconds timeout,
                              const std::string& word = "");

// Instead of meet(): tells the others that this rank cannot take part, so that they need not wait.
// Never throws.
void decline(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
             const std::string& reason) noexcept;

}  // namespace thinwire::comm
