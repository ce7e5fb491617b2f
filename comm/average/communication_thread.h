// The thread on which gradients are exchanged while the backward pass goes on.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace thinwire::comm {

struct CommunicationThreadOptions {
  int threads = 0;             // of at::parallel_for() in its jobs; 0: the process's default
  std::vector<int> cpus = {};  // that it may run on; empty: those of the creating thread
};

// Runs jobs one after another in the order in which they were submitted. After a job has thrown,
// the group that it used is unusable, so every later job is refused with the same exception.
class CommunicationThread {
 public:
  // Called when the job is done: with nullptr, or with the exception that it, or an earlier job,
  // threw. Runs on the communication thread and must not throw.
  using Done = std::function<void(std::exception_ptr)>;

  // Called whenever no job is left, after there was one: with nullptr, or with the exception that a
  // job threw. What it throws counts as a job's failure. Runs on the communication thread.
  using Idle = std::function<void(std::exception_ptr)>;

  // Throws InvalidArgument for a negative number of threads and for CPUs that the system refuses.
  explicit CommunicationThread(CommunicationThreadOptions options = {}, Idle idle = {});
  // Finishes the jobs that were submitted, then joins. Jobs end by themselves because every
  // collective has a timeout.
  ~CommunicationThread();
  CommunicationThread(const CommunicationThread&) = delete;
  CommunicationThread& operator=(const CommunicationThread&) = delete;

  // Thread-safe; returns at once.
  void submit(std::function<void()> job, Done done);

  // Runs `job` after those submitted so far and returns when it is done. What it throws is the
  // caller's alone and does not count as a job's failure: it makes no collective. Throws what an
  // earlier job threw.
  void call(const std::function<void()>& job);

 private:
  struct Entry {
    std::function<void()> job;
    Done done;
  };
  void loop();
  void run_idle(std::exception_ptr& failure);
  void stop();

  const Idle idle_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace thinwire::comm
