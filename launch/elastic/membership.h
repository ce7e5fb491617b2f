// How the processes of a training agree, again and again, on who is in it.
//
// Note [Generations]
//
// The worlds of a job are numbered, and its store, which outlives any rank, holds for each number
// at most one roster: whoever finds that the next world's candidates are complete writes it by
// compare-and-set, and the first one counts. So there is one line of worlds, whatever part of the
// network fails: who cannot reach the store is in none. A process asks for the next world where an
// exchange has failed, where another one asks, or where it wants to join; the others see that
// within a fraction of a second, or in the exchange that they wait in.
//
// Candidates are complete when all ranks of the last world that live have come. A process lives
// while its pulse does, a counter in the store that a thread of it raises: a rank that computes for
// a long time is waited for, one that is dead or stopped is not. One that was stopped and goes on
// later finds a roster without itself, and can only join as a new one. Everything that the ranks of
// a world write lies under the world's own prefix, and its connections are its own, so nothing of
// an earlier world reaches a later one.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/elastic/roster.h"

namespace thinwire::launch {

struct MembershipOptions {
  int hint = 0;      // this process's rank as its launcher told it
  int expected = 1;  // how many begin the first world
  int min_ranks = 0;
  std::chrono::milliseconds patience{};
  std::chrono::milliseconds dead_after{};
};

// Not thread-safe, but for its own thread.
class Membership {
 public:
  // Throws what the store throws where it does not answer.
  Membership(c10::intrusive_ptr<c10d::Store> store, MembershipOptions options);
  // Tells the others that this process has left.
  ~Membership();
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  int id() const { return id_; }
  const Roster& roster() const { return roster_; }

  // Asks for the next world and waits for it; returns true where this process is in it as what it
  // was, false where the others have gone on without it before, and it comes in as a new one.
  // Throws CommError where too few come within the patience, or the store does not answer.
  bool join_next(bool is_new, const std::vector<std::int64_t>& finished);
  // Whether somebody asks for the world after the present one. Costs nothing.
  bool change_is_called() const { return called_; }

  // From now on a rank of the world that gives no sign of life makes the others leave their
  // exchanges in `group`, without waiting for its timeout. Null: no longer.
  void watch(c10::intrusive_ptr<c10d::ProcessGroup> group);

  // For the end of the training: counts this rank as one that has finished in this world, and says
  // whether all that live have; who asks for a world from then on learns that there is none.
  void finish();
  bool all_have_finished();

 private:
  using Clock = std::chrono::steady_clock;
  struct Sign {
    std::string value;
    Clock::time_point seen;
    bool has_left = false;
  };

  void beat(c10d::Store& store);
  void look(c10d::Store& store, const std::vector<int>& ids);
  bool lives(int id);
  std::string key(const std::string& name, std::int64_t generation) const;
  std::int64_t latest_generation();
  std::vector<Candidate> living_candidates(std::int64_t generation);
  bool is_complete(const std::vector<Candidate>& candidates);
  std::string who_is_missing(const std::vector<Candidate>& candidates);
  void tell_of_the_dead(const std::vector<int>& ids);

  c10::intrusive_ptr<c10d::Store> store_;
  const MembershipOptions options_;
  Roster roster_;  // of the last world that is agreed on
  bool has_finished_ = false;

  std::atomic<bool> called_ = false;
  std::mutex mutex_;  // of all below
  std::condition_variable stop_;
  bool stopping_ = false;
  int id_ = 0;
  std::int64_t generation_ = 0;
  std::vector<int> ranks_;  // of roster_
  std::map<int, Sign> signs_;
  c10::intrusive_ptr<c10d::ProcessGroup> watched_;
  std::thread pulse_;
};

}  // namespace thinwire::launch
