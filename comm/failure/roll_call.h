// After a collective failed: every rank that can posts what happened to it, and reads what the
// others posted.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// What one rank knows of a failure.
struct FailureReport {
  // How the error travels: as the same type, or as a CommError.
  enum class Kind : int { kComm = 0, kInvalidArgument = 1, kFrameError = 2, kOther = 3 };

  Kind kind = Kind::kComm;
  int rank = -1;          // who posted it
  std::string operation;  // in which it failed, "averaging bucket 3 #17"
  std::string text;
};

struct RollCall {
  // In the order of posting, this rank's own included; empty where the store is gone. A rank has
  // one: its first.
  std::vector<FailureReport> reports;
  std::vector<int> silent;  // ranks that posted nothing in time
  bool store_is_gone = false;
};

// Posts `mine` and waits up to `patience` for all `size` ranks to post, but for those whose death
// is posted. A group may fail more than once: the n-th failure of this rank meets the n-th of the
// others. Returns in bounded time even where the store's host is dead or hangs.
RollCall call_roll(const c10::intrusive_ptr<c10d::Store>& store, const FailureReport& mine,
                   int size, std::chrono::milliseconds patience);

// Posts `report`, which its rank is to answer by call_roll() like the others.
void post_report(c10d::Store& store, const FailureReport& report);

// That `rank` has ended and will post nothing more. Whoever knows says so, once or several times.
void post_death(c10d::Store& store, int rank);

// Whether another rank has posted a failure that this rank has not answered. Throws where the
// store is unreachable.
bool failure_is_posted(const c10::intrusive_ptr<c10d::Store>& store, int rank);

// Whether any rank has ever posted one. Throws likewise.
bool failure_was_posted(c10d::Store& store);

}  // namespace thinwire::comm
