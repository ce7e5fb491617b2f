// One exchange of small texts between all ranks of a group, through their store.
//
// Note [Meetings]
//
// Every rank appends its word to one log and counts itself. Rank 0 waits for the count, reads the
// log, and posts the outcome, which the others wait for with one request a look. So a meeting takes
// each rank four requests and its looks, whatever the number of ranks, four keys in all, and the
// words travel twice: to the store, and to rank 0. What every rank would have to read of every
// other one, W * W texts, is read once and told in one.
//
// A rank that cannot go on ends the meeting with an outcome of its own, before the others have come
// or while they wait: the first outcome posted counts, and whoever comes later finds it.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/comm/join/store_log.h"

namespace thinwire::comm {

// How long rank 0 stays in a meeting that came to nothing: others may come late, or never. Those
// that come later find the reason as long as the store is there.
inline constexpr auto kStayToRefuse = std::chrono::seconds(2);

// Not thread-safe. Every member throws what the store throws where it is unreachable.
class StoreMeeting {
 public:
  // Makes the outcome of all words, in the order in which they came; runs on rank 0. A rank that
  // two processes claim has two words.
  using Judge = std::function<std::string(const std::vector<LogEntry>& words)>;
  // Called between two looks; pauses, or throws to give up.
  using Between = std::function<void()>;

  // The meeting `key` of the `size` ranks that have `store`. A key may be used again only when all
  // ranks have left.
  StoreMeeting(c10d::Store& store, std::string_view key, int rank, int size);

  // Says `word` and returns the outcome.
  std::string attend(std::string_view word, const Judge& judge, const Between& between);
  // The same for all that a rank does there: attends, waits `timeout` at most, and leaves. Throws
  // CommError that names `operation` and the ranks that did not come.
  std::string meet(std::string_view word, const Judge& judge, const std::string& operation,
                   std::chrono::milliseconds timeout);
  // Ends the meeting; returns the outcome that counts, which is another one where another rank was
  // earlier.
  std::string end(const std::string& outcome);
  // Whether the outcome is posted.
  bool is_over();
  // The ranks that have said nothing so far.
  std::vector<int> absent();
  // To be called once by every rank that has read the outcome and needs no more of the meeting.
  // Rank 0, whose process often hosts the store, stays until the others have left, `stay` at most,
  // so that its end does not take the outcome from them; then it deletes the meeting's keys.
  void leave(std::chrono::milliseconds stay = std::chrono::seconds(10));

 private:
  c10d::Store& store_;
  int rank_, size_;
  StoreLog words_;
  std::string outcome_, left_;
};

// "1, 2, 5": how errors list ranks.
std::string list_of(const std::vector<int>& ranks);

}  // namespace thinwire::comm
