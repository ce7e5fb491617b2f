// What the ranks of a job tell each other before their first process group, so that all of them
// start, or all of them fail with the same error.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/rank_env.h"

namespace thinwire::launch {

// The operation that a CommError of a job that is starting names.
inline constexpr const char* kJoining = "joining the job";

// One rank's word on itself.
struct Enrolment {
  int size = 1;                      // of the job, as its launcher told it
  int local_rank = -1;               // -1: its launcher did not tell
  std::string host = {};             // its name
  std::string backend = {};          // as asked for; "auto" leaves the choice to choose_backend()
  bool has_mpi = false;              // could use the mpi backend
  int gpus = 0;                      // that NCCL could use in this process
  std::string visible_devices = {};  // CUDA_VISIBLE_DEVICES
  std::string problem = {};          // why this rank cannot take part; empty: it can
  // What must be the same on every rank, as name and value; see Note [Variables that must agree].
  std::vector<std::pair<std::string, std::string>> settings = {};

  bool operator==(const Enrolment&) const = default;
};

// Posts `mine` and waits for every other rank; returns all of them in rank order, without their
// settings, which are the same. Collective.
//
// Throws the same error on every rank: InvalidArgument when two processes claim one rank, the ranks
// disagree on the size of the job, on the backend or on a setting, or one of them has a problem;
// CommError when ranks do not come within the timeout, naming them. Before it throws it waits,
// within the same timeout, for the ranks that have not read why: they need the store, which this
// rank may serve, and a launcher that sees one rank fail kills the others before they can say it.
//
// `between` is called between two looks into the store; what it throws, and is no Error, passes.
std::vector<Enrolment> enrol(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                             const Enrolment& mine, std::chrono::milliseconds timeout,
                             const std::function<void()>& between = {});

// On the way out after a failure of a job whose ranks have all enrolled in `store`: counts this
// rank as informed, and waits up to two seconds for those that are not yet, for the same reasons.
// Nobody waits for as many as are `dead`. Once a rank.
void leave_failed_job(c10d::Store& store, int size, int dead) noexcept;

// Fills in the local rank and size that the launcher did not tell, from the ranks with the same
// host name.
void complete_local_ranks(RankEnv& env, std::vector<Enrolment>& members);

// The CUDA device of a rank: its local rank, or the only one that it sees; -1 where it has none.
int cuda_device_of(const Enrolment& member);

// The backend of a job, the same on every rank: what all asked for; for "auto" mpi under a launcher
// of MPI (srun --mpi=pmix is one) where all have it, else gloo, whatever GPUs there are: see
// InitOptions. `members` as enrol() returns them, completed.
std::string choose_backend(const std::vector<Enrolment>& members, Launcher launcher);

}  // namespace thinwire::launch
