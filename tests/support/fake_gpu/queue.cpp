#include "thinwire/tests/support/fake_gpu/queue.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/settings.h"

namespace thinwire::fake_gpu {
namespace {

thread_local std::shared_ptr<const Task> task_of_thread;

}  // namespace

std::mutex& order_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

Clock& host_clock() {
  static auto* clock = new Clock;
  return *clock;
}

void host_joins(const Clock& clock, std::size_t stream, std::uint64_t number) {
  if (emulation_waits()) return;
  host_clock().join(clock);
  host_clock().raise(stream, number);
}

const std::shared_ptr<const Task>& current_task() {
  return task_of_thread;
}

std::uint64_t Stream::queued() const {
  const std::lock_guard lock(mutex_);
  return queued_;
}

void Stream::push(Work work) {
  const auto due = std::chrono::steady_clock::now() + delay(is_default_);
  clock_.join(host_clock());
  const std::lock_guard lock(mutex_);
  if (queued_++ == 0) std::thread([this] { work_off(); }).detach();
  clock_.raise(index_, queued_);
  auto task = std::make_shared<Task>(Task{std::move(work.what), index_, queued_, clock_});
  queue_.push_back({std::move(task), std::move(work.run), std::move(work.accesses), due});
  changed_.notify_all();
}

void Stream::wait_for(std::uint64_t number) {
  std::unique_lock lock(mutex_);
  hurry(number);
  changed_.wait(lock, [&] { return done_ >= number; });
}

bool Stream::has_done(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  hurry(number);
  return done_ >= number;
}

void Stream::hurry(std::uint64_t number) {
  wanted_ = std::max(wanted_, number);
  changed_.notify_all();
}

void Stream::work_off() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return !queue_.empty(); });
    while (wanted_ <= done_ && std::chrono::steady_clock::now() < queue_.front().due)
      changed_.wait_until(lock, queue_.front().due);
    Entry entry = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    task_of_thread = entry.task;
    for (const Access& access : entry.accesses) note(entry.task, access);
    if (entry.run) entry.run();
    task_of_thread = nullptr;
    entry = {};
    lock.lock();
    ++done_;
    changed_.notify_all();
  }
}

}  // namespace thinwire::fake_gpu
