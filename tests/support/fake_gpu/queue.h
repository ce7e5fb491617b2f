// A stream from the inside: a queue, the thread that works it off, and what it is ordered after.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "thinwire/tests/support/fake_gpu/order.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace thinwire::fake_gpu {

// Guards every Clock: what is queued, recorded and waited for happens in one order for all.
std::mutex& order_mutex();

// What the host has waited for. All its threads share it: an order that only they know, by a mutex
// or a join, would be missed otherwise. Under order_mutex().
Clock& host_clock();
// After the host waited for so many tasks of a stream, which were ordered after `clock`. Under
// order_mutex().
void host_joins(const Clock& clock, std::size_t stream, std::uint64_t number);

// Lives until the process ends.
class Stream {
 public:
  Stream(int device, std::size_t index, bool is_default)
      : device_(device), index_(index), is_default_(is_default) {}

  int device() const { return device_; }
  std::size_t index() const { return index_; }
  Clock& clock() { return clock_; }  // under order_mutex()
  // Of the last task that was queued.
  std::uint64_t queued() const;

  // Under order_mutex().
  void push(Work work);
  void wait_for(std::uint64_t number);
  // Asking hurries the stream too: a loop that asks again and again would be slow otherwise.
  bool has_done(std::uint64_t number);

 private:
  struct Entry {
    std::shared_ptr<const Task> task;
    std::function<void()> run;
    std::vector<Access> accesses;
    std::chrono::steady_clock::time_point due;
  };

  void hurry(std::uint64_t number);
  void work_off();

  const int device_;
  const std::size_t index_;
  const bool is_default_;
  Clock clock_;  // under order_mutex()
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::uint64_t queued_ = 0, done_ = 0;
  std::uint64_t wanted_ = 0;  // somebody waits until so many are done
};

}  // namespace thinwire::fake_gpu
