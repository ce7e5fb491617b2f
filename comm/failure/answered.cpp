#include "thinwire/comm/failure/answered.h"

#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// Stays when its board goes: there are few, and a board that comes to lie at the same address has
// waiters that began later.
struct BoardAnswers {
  std::mutex one_at_a_time;
  std::uint64_t number = 0;  // of the last one, among all of this process; 0: none
  std::exception_ptr error;
};

std::atomic<std::uint64_t> answers_given = 0;
std::mutex answers_mutex;  // of all members but one_at_a_time

BoardAnswers& answers_of(const c10d::Store* board, int rank) {
  // Threads may outlive static objects.
  static auto* boards = new std::map<std::pair<const c10d::Store*, int>, BoardAnswers>();
  const std::lock_guard lock(answers_mutex);
  return (*boards)[{board, rank}];
}

std::exception_ptr answer_since(const BoardAnswers& answers, std::uint64_t since) {
  const std::lock_guard lock(answers_mutex);
  return answers.number > since ? answers.error : nullptr;
}

}  // namespace

std::uint64_t failures_answered() noexcept {
  return answers_given;
}

std::exception_ptr failure_answered_since(const c10d::ProcessGroup& group, std::uint64_t since) {
  const auto board = DuplicateStore::board_of(group.getStore());
  return answer_since(answers_of(board.get(), group.getRank()), since);
}

void answer_once(const c10d::Store* board, int rank, std::uint64_t since,
                 const std::function<void()>& answer) {
  BoardAnswers& answers = answers_of(board, rank);
  const std::lock_guard turn(answers.one_at_a_time);
  if (const std::exception_ptr error = answer_since(answers, since)) std::rethrow_exception(error);
  try {
    answer();
  } catch (...) {
    const std::lock_guard lock(answers_mutex);
    answers.number = ++answers_given;
    answers.error = std::current_exception();
    throw;
  }
  throw InternalError("a failure of a process group was answered by nothing");
}

}  // namespace thinwire::comm
