#include "thinwire/comm/average/communication_thread.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// Of the calling thread alone. at::set_num_threads() also changes what new threads begin with;
// another call puts that back, on a thread that ends at once.
void set_own_threads(int threads) {
  const int usual = at::get_num_threads();
  at::set_num_threads(threads);
  std::thread([usual] { at::set_num_threads(usual); }).join();
}

void set_own_cpus(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::string names;
  for (const int cpu : cpus) {
    check(cpu >= 0 && cpu < CPU_SETSIZE, "there is no CPU ", cpu, " for the communication thread");
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    names += concat(names.empty() ? "" : ", ", cpu);
  }
  const int failed = pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  check(failed == 0, "the communication thread cannot run on the CPUs ", names, ": ",
        std::generic_category().message(failed));
}

}  // namespace

CommunicationThread::CommunicationThread(CommunicationThreadOptions options, Idle idle)
    : idle_(std::move(idle)) {
  check(options.threads >= 0, "the communication thread cannot have ", options.threads, " threads");
  thread_ = std::thread([this] { loop(); });
  if (options.threads == 0 && options.cpus.empty()) return;
  // Shared, since the thread may still be inside of set_value() when this one goes on.
  const auto set_up = std::make_shared<std::promise<void>>();
  submit(
      [&] {
        if (options.threads > 0) set_own_threads(options.threads);
        if (!options.cpus.empty()) set_own_cpus(options.cpus);
      },
      [set_up](const std::exception_ptr& failure) {
        if (failure) {
          set_up->set_exception(failure);
        } else {
          set_up->set_value();
        }
      });
  try {
    set_up->get_future().get();
  } catch (...) {
    stop();
    throw;
  }
}

CommunicationThread::~CommunicationThread() {
  stop();
}

void CommunicationThread::stop() {
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

void CommunicationThread::call(const std::function<void()>& job) {
  // Shared, since the thread may still be inside of set_value() when this one goes on.
  const auto done = std::make_shared<std::promise<void>>();
  submit(
      [done, &job] {
        try {
          job();
          done->set_value();
        } catch (...) {
          done->set_exception(std::current_exception());
        }
      },
      [done](const std::exception_ptr& refused) {
        if (refused) done->set_exception(refused);
      });
  done->get_future().get();
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
