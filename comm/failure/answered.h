// What this process has answered to the failures of its groups, for threads that meet one together.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// Note [One answer]
// The n-th failure that a process answers on a board meets the n-th of the other processes (see
// call_roll()). Where several of its threads meet the same failure, one in a collective of the host
// and one that watches a device, they must not answer it twice: the others would never come to the
// second roll call. Whoever raises a failure says since when it has waited; if this process has
// answered one since, it is that.

// How many failures this process has answered, on any board.
std::uint64_t failures_answered() noexcept;

// What this process answered last on the board of `group`, if that was after so many answers; else
// null. Thread-safe.
std::exception_ptr failure_answered_since(const c10d::ProcessGroup& group, std::uint64_t since);

// Throws the same, or where there is none what `answer` throws: one thread at a time for each rank
// of a board. (Ranks may be threads of one process.)
[[noreturn]] void answer_once(const c10d::Store* board, int rank, std::uint64_t since,
                              const std::function<void()>& answer);

}  // namespace thinwire::comm
