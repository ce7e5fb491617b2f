#include "thinwire/comm/join/store_meeting.h"

#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {

StoreMeeting::StoreMeeting(c10d::Store& store, std::string_view key, int rank, int size)
    : store_(store),
      rank_(rank),
      size_(size),
      words_(store, "thinwire/" + std::string(key)),
      outcome_("thinwire/" + std::string(key) + "/outcome"),
      left_("thinwire/" + std::string(key) + "/left") {}

std::string StoreMeeting::attend(std::string_view word, const Judge& judge,
                                 const Between& between) {
  std::int64_t came = words_.append(rank_, word);
  while (true) {
    if (rank_ == 0 && came >= size_) return end(judge(words_.read()));
    if (is_over()) return store_.get_to_str(outcome_);
    between();
    if (rank_ == 0) came = words_.count();
  }
}

std::string StoreMeeting::meet(std::string_view word, const Judge& judge,
                               const std::string& operation, std::chrono::milliseconds timeout) {
  StorePoll poll(size_, StorePoll::Clock::now() + timeout);
  const std::string outcome = attend(word, judge, [&] {
    if (poll.pause()) return;
    const std::vector<int> missing = absent();
    throw CommError(missing.empty() ? 0 : missing.front(), operation, 0,
                    concat("rank(s) ", list_of(missing), " did not come within ",
                           static_cast<double>(timeout.count()) / 1000, " s"));
  });
  leave();
  return outcome;
}

std::string StoreMeeting::end(const std::string& outcome) {
  return store_.compareSet(outcome_, "", outcome);
}

bool StoreMeeting::is_over() {
  return store_.check({outcome_});
}

std::vector<int> StoreMeeting::absent() {
  std::vector<bool> came(static_cast<std::size_t>(size_), false);
  for (const LogEntry& word : words_.read())
    if (word.rank < size_) came[static_cast<std::size_t>(word.rank)] = true;
  std::vector<int> ranks;
  for (int rank = 0; rank < size_; ++rank)
    if (!came[static_cast<std::size_t>(rank)]) ranks.push_back(rank);
  return ranks;
}

void StoreMeeting::leave(std::chrono::milliseconds stay) {
  std::int64_t left = store_.add(left_, 1);
  if (rank_ != 0) return;
  for (StorePoll poll(size_, StorePoll::Clock::now() + stay); left < size_;
       left = store_.add(left_, 0))
    if (!poll.pause()) return;
  words_.remove();
  store_.deleteKey(outcome_);
  store_.deleteKey(left_);
}

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

}  // namespace thinwire::comm
