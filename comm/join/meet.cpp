#include "thinwire/comm/join/meet.h"

#include <algorithm>

#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_connection.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

// Outcomes of the meeting: the lines of all ranks follow, or why there is no group.
constexpr std::string_view kMet = "met\n", kNoGroup = "refused ";

StoreMeeting meeting_of(c10d::Store& store, int rank, int size) {
  return {store, "members", rank, size};
}

std::string two_claim(int rank, int size) {
  return concat("two processes claim rank ", rank, " of ", size,
                ", or the store's prefix is that of another process group");
}

std::string lines_by_rank(std::vector<LogEntry> words, int size) {
  std::ranges::stable_sort(words, {}, &LogEntry::rank);
  std::string lines(kMet);
  int rank = 0;
  for (const LogEntry& word : words) {
    if (word.rank != rank) return std::string(kNoGroup) + two_claim(word.rank, size);
    ++rank;
    lines += word.text + '\n';
  }
  return lines;
}

std::vector<std::string> split_lines(std::string_view lines) {
  std::vector<std::string> words;
  while (!lines.empty()) {
    const std::size_t end = lines.find('\n');
    words.emplace_back(lines.substr(0, end));
    lines.remove_prefix(end + 1);
  }
  return words;
}

class Meet {
 public:
  Meet(c10d::Store& store, int rank, int size, const std::string& backend,
       std::chrono::milliseconds timeout)
      : store_(store),
        meeting_(meeting_of(store, rank, size)),
        rank_(rank),
        size_(size),
        backend_(backend),
        timeout_(timeout) {}

  std::vector<std::string> run(const std::string& word) {
    StorePoll poll(size_, StorePoll::Clock::now() + timeout_);
    compare_with_the_first();
    const std::string outcome = meeting_.attend(
        word, [this](const std::vector<LogEntry>& words) { return lines_by_rank(words, size_); },
        [&] {
          if (!poll.pause()) give_up();
        });
    conclude(outcome);
    return split_lines(std::string_view(outcome).substr(kMet.size()));
  }

 private:
  // Who comes first says what the group is; whoever means another one ends the meeting. Ranks that
  // disagree on the size would wait for different numbers of others.
  void compare_with_the_first() {
    const std::string mine = concat(std::to_string(size_), " rank(s) over ", backend_);
    const std::string first =
        store_.compareSet("thinwire/group", "", concat(mine, " ", std::to_string(rank_)));
    const std::size_t blank = first.rfind(' ');
    if (first.substr(0, blank) != mine)
      conclude(meeting_.end(concat(kNoGroup, "the ranks disagree: rank ", first.substr(blank + 1),
                                   " makes a process group of ", first.substr(0, blank), ", rank ",
                                   rank_, " one of ", mine)));
    // Where they agree on it, more than all is too many.
    check(store_.add("thinwire/came", 1) <= size_, two_claim(rank_, size_));
  }

  void conclude(const std::string& outcome) {
    if (outcome.starts_with(kMet)) return meeting_.leave();
    meeting_.leave(kStayToRefuse);
    throw InvalidArgument(outcome.substr(kNoGroup.size()));
  }

  [[noreturn]] void give_up() {
    const std::vector<int> absent = meeting_.absent();
    const std::string operation = concat("making a process group over ", backend_);
    const double seconds = static_cast<double>(timeout_.count()) / 1000;
    if (absent.empty())
      throw CommError(0, operation, 0,
                      concat("all ranks came, but it did not say so within ", seconds, " s"));
    throw CommError(
        absent.front(), operation, 0,
        concat("rank(s) ", list_of(absent), " of ", size_, " did not come within ", seconds, " s"));
  }

  c10d::Store& store_;
  StoreMeeting meeting_;
  int rank_, size_;
  std::string backend_;
  std::chrono::milliseconds timeout_;
};

}  // namespace

std::vector<std::string> meet(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                              const std::string& backend, std::chrono::milliseconds timeout,
                              const std::string& word) {
  end_waits_for_a_silent_host(store, timeout);
  try {
    return Meet(*store, rank, size, backend, timeout).run(word);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, concat("making a process group over ", backend), 0,
                    concat("the store is unreachable: ", error_text(error)));
  }
}

void decline(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
             const std::string& reason) noexcept {
  try {
    meeting_of(*store, rank, size)
        .end(concat(kNoGroup, "rank ", rank, " cannot join the process group: ", reason));
  } catch (const std::exception& error) {
    log::debug("the other ranks could not be told of a failure: ", error.what());
  }
}

}  // namespace thinwire::comm
