#include "thinwire/comm/failure/failure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include <ATen/core/ivalue_inl.h>

#include "thinwire/comm/failure/departure.h"
#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/comm/failure/operation_record.h"
#include "thinwire/comm/failure/roll_call.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

using Kind = FailureReport::Kind;

constexpr auto kPatience = std::chrono::seconds(2);
std::atomic<int> silent_ranks = 0;  // in the last roll call

FailureReport describe(int rank, std::string operation, const std::exception_ptr& cause) {
  FailureReport report{Kind::kOther, rank, std::move(operation), ""};
  const auto is = [&](Kind kind, const std::exception& error) {
    report.kind = kind;
    report.text = error_text(error);
  };
  try {
    std::rethrow_exception(cause);
  } catch (const InvalidArgument& error) {
    is(Kind::kInvalidArgument, error);
  } catch (const FrameError& error) {
    is(Kind::kFrameError, error);
  } catch (const CommError& error) {
    is(Kind::kComm, error);
  } catch (const Error& error) {
    is(Kind::kOther, error);
  } catch (const std::bad_alloc& error) {
    is(Kind::kOther, error);
  } catch (const std::exception& error) {
    is(Kind::kComm, error);
  } catch (...) {
    report.text = "an exception of unknown type";
  }
  return report;
}

// Where every rank is alive and none has an error of its own, they wait for each other: in which
// operations. Empty where all name the same.
std::string differing_operations(const std::vector<FailureReport>& reports) {
  std::map<std::string, std::vector<int>> ranks_of;
  for (const FailureReport& report : reports) ranks_of[report.operation].push_back(report.rank);
  if (ranks_of.size() < 2) return "";
  // The fewest ranks first, for they are the odd ones.
  std::vector<std::pair<std::string, std::vector<int>>> groups(ranks_of.begin(), ranks_of.end());
  std::ranges::stable_sort(groups, {}, [](const auto& group) { return group.second.size(); });
  std::string text;
  for (auto& [operation, ranks] : groups) {
    std::ranges::sort(ranks);
    text += concat(text.empty() ? "" : ", ", ranks.size() == 1 ? "rank " : "ranks ", list_of(ranks),
                   " in ", operation);
  }
  return "the ranks wait for each other in different operations: " + text + "; ";
}

// Marks what raise_collective_failure() throws, so that it knows its own exceptions.
struct Answered {
  const c10d::Store* board;  // where the failure was posted; compared, never followed
};

template <typename ErrorType>
struct AnsweredError final : ErrorType, Answered {
  AnsweredError(const ErrorType& error, const c10d::Store* where)
      : ErrorType(error), Answered{where} {}
};

bool is_answered(const std::exception_ptr& cause, const c10d::Store* board) {
  try {
    std::rethrow_exception(cause);
  } catch (const Answered& answered) {
    return answered.board == board;
  } catch (...) {
    return false;
  }
}

// The ranks that have said that they leave, with their reasons: "; rank 1 has left: ...".
std::string departures_of(const c10d::ProcessGroup& group, const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) {
    const std::string reason = departure_of(group, rank);
    if (!reason.empty()) text += concat("rank ", rank, " has left: ", reason, "; ");
  }
  return text;
}

[[noreturn]] void raise(const RollCall& roll, const FailureReport& mine,
                        const c10d::ProcessGroup& group, const std::string& operation,
                        std::uint64_t sequence, const c10d::Store* board) {
  const int size = group.getSize();
  const auto comm_error = [&](int rank, const std::string& reason) {
    return AnsweredError(CommError(rank, operation, sequence, reason), board);
  };
  if (roll.store_is_gone)
    // Nobody but the store's host could say more. That is rank 0, unless the launcher serves the
    // store, and then the launcher is gone and the job with it.
    throw comm_error(mine.rank == 0 ? -1 : 0,
                     concat("the store does not answer, so the rank that hosts it is gone too; "
                            "this rank saw: ",
                            mine.text));
  for (const FailureReport& report : roll.reports) {
    if (report.kind == Kind::kInvalidArgument)
      throw AnsweredError(InvalidArgument(report.text), board);
    if (report.kind == Kind::kFrameError) throw AnsweredError(FrameError(report.text), board);
  }
  for (const FailureReport& report : roll.reports)
    if (report.kind == Kind::kOther)
      throw comm_error(report.rank, concat("rank ", report.rank, " reports: ", report.text));
  const std::string departures = departures_of(group, roll.silent);
  if (!departures.empty())
    throw comm_error(roll.silent.front(), concat(departures, "this rank saw: ", mine.text));
  if (!roll.silent.empty())
    throw comm_error(roll.silent.front(), concat("rank(s) ", list_of(roll.silent), " of ", size,
                                                 " are dead or hung, or have ended (with fewer "
                                                 "batches than the others?); this rank saw: ",
                                                 mine.text));
  const FailureReport& first = roll.reports.front();
  throw comm_error(-1, concat("every rank is alive; ", differing_operations(roll.reports), "rank ",
                              first.rank, " was the first to fail: ", first.text));
}

// Blocks until `work` has finished, or another rank has posted a failure (then returns false).
bool finished_before_any_failure(const c10d::ProcessGroup& group,
                                 const c10::intrusive_ptr<c10d::Work>& work) {
  struct Signal {
    std::mutex mutex;
    std::condition_variable changed;
    bool finished = false;
  };
  c10::intrusive_ptr<c10::ivalue::Future> future;
  try {
    future = work->getFuture();
  } catch (const c10::Error&) {
    return true;  // Gloo's send and recv have none; their own wait() has to do
  }
  // The future of a GPU collective completes when it is enqueued, wait() is what synchronises.
  if (future == nullptr || !future->devices().empty()) return true;
  const auto signal = std::make_shared<Signal>();
  future->addCallback([signal](c10::ivalue::Future&) {
    const std::lock_guard lock(signal->mutex);
    signal->finished = true;
    signal->changed.notify_all();
  });
  const auto board = DuplicateStore::board_of(group.getStore());
  bool can_ask = board != nullptr;
  std::unique_lock lock(signal->mutex);
  while (!signal->changed.wait_for(lock, kAskEvery, [&] { return signal->finished; })) {
    if (!can_ask) continue;
    lock.unlock();
    try {
      if (failure_is_posted(board, group.getRank())) return false;
    } catch (const std::exception& error) {
      // The collective itself tells more, within its timeout.
      log::debug("the store does not answer: ", error.what());
      can_ask = false;
    }
    lock.lock();
  }
  return true;
}

}  // namespace

void raise_collective_failure(const c10d::ProcessGroup& group, const std::string& operation,
                              std::uint64_t sequence, std::exception_ptr cause,
                              std::uint64_t since) {
  const auto board = DuplicateStore::board_of(group.getStore());
  if (is_answered(cause, board.get())) std::rethrow_exception(std::move(cause));
  const FailureReport mine = describe(group.getRank(), concat(operation, " #", sequence), cause);
  if (board == nullptr) {
    if (mine.kind != Kind::kComm) std::rethrow_exception(cause);
    throw AnsweredError(CommError(-1, operation, sequence, mine.text), board.get());
  }
  answer_once(board.get(), mine.rank, since, [&] {
    const RollCall roll = call_roll(board, mine, group.getSize(), kPatience);
    silent_ranks = static_cast<int>(roll.silent.size());
    try {
      raise(roll, mine, group, operation, sequence, board.get());
    } catch (const std::exception& error) {
      leave_postmortem(mine.rank, group.getSize(), mine.operation, error.what());
      throw;
    }
  });
}

void post_failure(const c10d::ProcessGroup& group, const std::string& operation,
                  const std::string& text) {
  const auto board = DuplicateStore::board_of(group.getStore());
  if (board == nullptr) return;
  post_report(*board->clone(), {Kind::kComm, group.getRank(), operation, text});
}

int ranks_found_silent() noexcept {
  return silent_ranks;
}

bool another_rank_has_failed(const c10d::ProcessGroup& group) {
  const auto board = DuplicateStore::board_of(group.getStore());
  return board != nullptr && failure_is_posted(board, group.getRank());
}

void wait(const c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Work>& work,
          const std::string& operation, std::uint64_t sequence) {
  const std::uint64_t since = failures_answered();
  try {
    std::optional<RecordedOperation> recorded;
    if (leaves_postmortems()) recorded.emplace(operation, sequence);
    if (!finished_before_any_failure(group, work))
      throw CommError(-1, operation, sequence, "another rank has failed");
    if (!work->wait()) throw CommError(-1, operation, sequence, "it was aborted");
  } catch (...) {
    raise_collective_failure(group, operation, sequence, std::current_exception(), since);
  }
}

}  // namespace thinwire::comm
