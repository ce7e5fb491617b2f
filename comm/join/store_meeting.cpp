#include "thinwire/comm/join/store_meeting.h"

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

void StoreMeeting::leave() {
  if (store_.add(left_, 1) != size_) return;
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
