#include "thinwire/comm/average/communication_thread.h"

#include <utility>

namespace thinwire::comm {

CommunicationThread::CommunicationThread(Idle idle)
    : idle_(std::move(idle)), thread_([this] { loop(); }) {}

CommunicationThread::~CommunicationThread() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CommunicationThread::submit(std::function<void()> job, Done done) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back({std::move(job), std::move(done)});
  }
  changed_.notify_all();
}

void CommunicationThread::run_idle(std::exception_ptr& failure) {
  try {
    idle_(failure);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
}

void CommunicationThread::loop() {
  std::exception_ptr failure;  // of the first job that threw
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Entry entry = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    if (!failure) {
      try {
        entry.job();
      } catch (...) {
        failure = std::current_exception();
      }
    }
    entry.done(failure);
    entry = {};  // what the job holds is released while others can submit
    lock.lock();
    if (!queue_.empty() || !idle_) continue;
    lock.unlock();
    run_idle(failure);
    lock.lock();
  }
}

}  // namespace thinwire::comm
