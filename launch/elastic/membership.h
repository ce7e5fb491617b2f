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
// a long time is waited for, one that is dead or stopped is not. Of a process that has ended its
// host's kernel tells at once (see Lifeline), which is asked where an exchange has failed or a rank
// is missing; the pulse alone is for those that are stopped, or whose host is gone. One that was
// stopped and goes on later finds a roster without itself, and can only join as a new one; so does
// one that was wrongly taken for dead. Everything that the ranks of
// a world write lies under the world's own prefix, and its connections are its own, so nothing of
// an earlier world reaches a later one.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/elastic/lifeline.h"
#include "thinwire/launch/elastic/roster.h"

namespace thinwire::launch {

struct MembershipOptions {
  int hint = 0;      // this process's rank as its launcher told it
  int expected = 1;  // how many begin the first world
  std::string host;  // where others reach this process
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

  // From now on a rank of the world that has ended or gives no sign of life makes the others leave
  // their exchanges in `group`, without waiting for its timeout.
  void watch(const c10d::ProcessGroup& group);
  // Until then the ranks may wait for each other in the store, where no connection tells of a
  // death.
  void world_is_made();
  void watch_no_longer();

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
    bool has_ended = false;   // without saying so
    bool has_a_line = false;  // its lifeline has answered once, so that a refusal means something
  };

  void beat(c10d::Store& store);
  void look(c10d::Store& store, const std::vector<int>& ids);
  void look_at_lifelines(const std::vector<Candidate>& ranks);
  bool lives(int id);
  std::string key(const std::string& name, std::int64_t generation) const;
  std::int64_t latest_generation();
  std::vector<Candidate> living_candidates(std::int64_t generation);
  bool is_complete(const std::vector<Candidate>& candidates);
  std::string who_is_missing(const std::vector<Candidate>& candidates);
  void tell_of_the_dead(c10d::Store& board, const std::vector<Candidate>& ranks, int mine);

  c10::intrusive_ptr<c10d::Store> store_;
  const MembershipOptions options_;
  Lifeline lifeline_;
  Roster roster_;  // of the last world that is agreed on
  bool has_finished_ = false;
  Clock::time_point looked_at_lifelines_;

  std::atomic<bool> called_ = false;
  std::mutex mutex_;  // of all below
  std::condition_variable stop_;
  bool stopping_ = false;
  int id_ = 0;
  std::int64_t generation_ = 0;
  std::vector<Candidate> ranks_;  // of roster_
  std::map<int, Sign> signs_;
  // Where failures of the group that is watched are posted; null without one. Of the group itself
  // nothing is held here: whoever lets go of it last may wait for its operations.
  c10::intrusive_ptr<c10d::Store> board_;
  bool makes_world_ = false;
  std::set<int> posted_;  // ids of the dead that are told there
  std::thread pulse_;
};

}  // namespace thinwire::launch
