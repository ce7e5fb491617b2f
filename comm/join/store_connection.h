// The process's connections to the store of its job.
#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// Makes calls of a TCPStore, through whatever prefixes, fail with an exception where nothing has
// come from its host for `timeout` (at least a second). Else they wait as long as the kernel sends
// again, about a quarter of an hour, when that host has lost power or the network: nobody closes
// the connection then. Without effect for other stores. Thread-safe, never throws.
void end_waits_for_a_silent_host(const c10::intrusive_ptr<c10d::Store>& store,
                                 std::chrono::milliseconds timeout) noexcept;

}  // namespace thinwire::comm
