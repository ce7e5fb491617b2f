// Looking into a store again and again, until what another rank will post is there.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

namespace thinwire::comm {

// The pauses between the looks of one rank of `ranks`, up to a deadline. Polling, rather than a
// wait of the store's, so that a rank can look for failures meanwhile and never blocks the
// connection, which all threads of the process share.
//
// The first pause is a millisecond, each next one twice as long, up to 50 ms; with more than 250
// ranks longer, so that all of them together ask the store's host 5000 times a second at most.
class StorePoll {
 public:
  using Clock = std::chrono::steady_clock;

  StorePoll(int ranks, Clock::time_point deadline)
      : deadline_(deadline), longest_(std::max<std::int64_t>(50'000, 200L * ranks)) {}

  // False, at once, where the deadline has passed.
  bool pause() {
    const auto now = Clock::now();
    if (now >= deadline_) return false;
    std::this_thread::sleep_until(std::min(now + next_, deadline_));
    next_ = std::min(next_ * 2, longest_);
    return true;
  }

 private:
  Clock::time_point deadline_;
  std::chrono::microseconds next_{1000};
  std::chrono::microseconds longest_;
};

}  // namespace thinwire::comm
