// The one place where a failure of this rank alone becomes known to the others.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/failure/failure.h"

namespace thinwire::comm {

// Returns what `action` returns. Whatever it throws (an allocation that failed, an exception of the
// user's code, c10d's own errors) is posted to the other ranks of the group, which wait for this
// one in a collective, and becomes the named error of raise_collective_failure(). With one rank the
// exception passes as it is.
//
// `operation` names in messages what was done: a text, or a function that makes it, which runs only
// where there is a failure. What the ranks agree on, so that all of them throw it alike, stays
// outside. Thread-safe as far as `action` is.
template <typename Operation, typename Action>
auto guard(const c10d::ProcessGroup& group, const Operation& operation, std::uint64_t sequence,
           const Action& action) -> decltype(action()) {
  try {
    return action();
  } catch (...) {
    if (group.getSize() == 1) throw;
    std::string name;
    if constexpr (std::is_invocable_v<const Operation&>) {
      name = operation();
    } else {
      name = operation;
    }
    raise_collective_failure(group, name, sequence, std::current_exception());
  }
}

// Starts a collective and waits for it: `start` returns its Work. What fails while it starts is
// this rank's alone, and told like the rest.
template <typename Start>
void run_collective(const c10d::ProcessGroup& group, const std::string& operation,
                    std::uint64_t sequence, const Start& start) {
  guard(group, operation, sequence, [&] { wait(group, start(), operation, sequence); });
}

}  // namespace thinwire::comm
