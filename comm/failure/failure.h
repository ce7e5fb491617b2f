// Turning the failure of a collective into an error that names who is missing.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/failure/answered.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {

// How often a rank that waits for the others looks whether one of them has failed meanwhile. What
// is over sooner never asks; a question costs two small messages.
inline constexpr std::chrono::milliseconds kAskEvery{200};

// Call inside a catch block after a collective of `group` failed. Posts this rank's failure to the
// group's store (a duplicate's to that of the original, see DuplicateStore), waits up to two
// seconds for the other ranks to post theirs, and throws:
// - the first failure posted, where that was a named error of another rank (FrameError and
//   InvalidArgument carry over as the same type and text, so all ranks raise one error);
// - else CommError naming the ranks that posted nothing (dead or hung, or gone for a reason that
//   they gave, see departure.h), or the store's rank when the store itself is gone.
// Every rank that gets here leaves with an exception; nobody waits for a rank that is gone. A cause
// that it has thrown itself for this group, or one that shares its board, is rethrown as it is: a
// failure is posted once, however many callers catch it on its way out. If another thread of this
// process has answered a failure there after `since`, when the caller began to wait, that is
// thrown: see Note [One answer]. Thread-safe.
[[noreturn]] void raise_collective_failure(const c10d::ProcessGroup& group,
                                           const std::string& operation, std::uint64_t sequence,
                                           std::exception_ptr cause,
                                           std::uint64_t since = failures_answered());

// Whether another rank has posted a failure that this rank has not answered. Throws where the store
// is unreachable. For whoever waits for the others by other means than a collective.
bool another_rank_has_failed(const c10d::ProcessGroup& group);

// Posts a failure of this rank without waiting for the others, for a thread that is in no
// collective: those that are leave them with the error of raise_collective_failure(), which for the
// ranks that then answer is a CommError with `text`. Throws what the store throws.
void post_failure(const c10d::ProcessGroup& group, const std::string& operation,
                  const std::string& text);

// How many ranks had posted nothing when this process last raised a failure: they are dead, and
// nobody need wait for them. Thread-safe.
int ranks_found_silent() noexcept;

// Waits for `work`, and looks meanwhile whether another rank has failed; on failure calls
// raise_collective_failure().
void wait(const c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Work>& work,
          const std::string& operation, std::uint64_t sequence);

}  // namespace thinwire::comm
