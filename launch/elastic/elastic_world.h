// A job whose ranks may come and go while it trains.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/launch/world.h"

namespace thinwire::launch {

class Membership;

struct ElasticOptions {
  // Over gloo or nccl; MPI ends a job with the first rank that dies.
  InitOptions init = {};
  // So many ranks begin, and go on without the others, and no fewer; 0: more than half of those
  // that were there, so that the smaller part of a job that has fallen in two ends. 1 lets a single
  // one go on. No two parts ever go on, whatever this is: see Note [Generations].
  int min_ranks = 0;
  // How long too few wait for others to come before they give up.
  std::chrono::milliseconds patience = std::chrono::minutes(1);
  // A process that has given no sign of life for so long is taken for dead, also where it has only
  // been stopped. Its threads need not do anything; the process has to run.
  std::chrono::milliseconds dead_after = std::chrono::seconds(3);
  // How long ranks that have agreed on a world wait for each other while they make its group.
  std::chrono::milliseconds connect_timeout = std::chrono::seconds(15);
};

// This process's place in the job. The store must outlive any rank, so none of them serves it:
//
//   by hand, srun   `thinwire store --port P` on some host, THINWIRE_STORE=HOST:P for every rank
//   torchrun        its agent serves it: start one agent a rank, since an agent whose worker dies
//                   ends the others that it has started (docs/elastic.md)
//
// Until the training begins the process is a world of its own, over which it makes whatever
// communicates, so that nobody waits for anybody while models and data are loaded. Then
// ElasticTraining takes it into that of the others, and from world to world. Not thread-safe.
class ElasticWorld {
 public:
  // Not collective. Throws InvalidArgument where there is no such store, for a negative number or a
  // backend that cannot do it; CommError where nobody answers at the store's address.
  explicit ElasticWorld(const ElasticOptions& options = {});
  // Leaves the job.
  ~ElasticWorld();
  ElasticWorld(const ElasticWorld&) = delete;
  ElasticWorld& operator=(const ElasticWorld&) = delete;

  // The present world: another one after each change. Its group must not be kept.
  World& now() { return *world_; }
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return world_->group(); }
  // Counts the worlds; 0 before the first.
  std::int64_t generation() const;

  // What follows is for ElasticTraining.

  // How this process stands in a world.
  struct Place {
    bool is_new = true;
    bool somebody_is_new = false;  // though the training has begun
    bool all_are_new = false;
    // What rank 0 has finished, as given to join_next(), and whether any rank has less.
    std::vector<std::int64_t> furthest = {};
    bool somebody_is_behind = false;
  };
  // Leaves the present world and makes the next one with all that live. `why` is for the log.
  // Throws CommError where too few come, and where one is gone before the group is made: then it
  // may be called again. InvalidArgument where what a rank was started with does not fit.
  Place join_next(bool is_new, const std::vector<std::int64_t>& finished, const std::string& why);
  // Every rank has taken over what it needed: exchanges have their usual timeout from here on.
  void settle();
  bool change_is_called() const;
  void finish();
  bool all_have_finished();
  std::chrono::milliseconds timeout() const { return timeout_; }

 private:
  void begin_alone();
  void begin(RankEnv ranks, c10::intrusive_ptr<c10d::Store> store,
             std::chrono::milliseconds timeout);

  ElasticOptions options_;
  const std::chrono::milliseconds timeout_;
  RankEnv ranks_;  // as the launcher told them
  std::string host_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::unique_ptr<Membership> membership_;
  std::optional<World> world_;
};

}  // namespace thinwire::launch
