// How a program becomes one rank of a job.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/rank_env.h"

namespace thinwire::launch {

struct Enrolment;

struct InitOptions {
  // "auto", "mpi", "gloo" or "nccl"; auto: THINWIRE_BACKEND, else mpi under mpirun, else
  // gloo. nccl must be asked for, by programs whose gradients are in GPU memory.
  std::string backend = "auto";
  // 0: THINWIRE_TIMEOUT, default five minutes.
  std::chrono::milliseconds timeout{0};
};

// One rank's place in the job, its store and its default process group. Movable; destroy it (or
// let it go out of scope) before main returns. When an exception takes it out of scope, it waits up
// to two seconds for the other ranks to fail as well. Not thread-safe.
class World {
 public:
  int rank() const { return ranks_.rank; }
  int size() const { return ranks_.size; }
  int local_rank() const { return ranks_.local_rank; }
  int local_size() const { return ranks_.local_size; }
  const RankEnv& ranks() const { return ranks_; }
  const std::string& host() const { return host_; }
  // The host name of every rank, in rank order.
  const std::vector<std::string>& hosts() const { return hosts_; }
  const std::string& backend() const { return backend_; }
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  const c10::intrusive_ptr<c10d::Store>& store() const { return store_; }

  // What a program needs beside training. Collective: every rank calls them, in the same order, and
  // while no other collective of group() is under way. They throw CommError naming the rank that
  // does not come within the timeout.
  //
  // Returns once every rank has entered.
  void barrier();
  // The values of all ranks in one: their sum, or by `op` mean (AVG), least (MIN), largest (MAX) or
  // product. The same bits on every rank.
  double all_reduce(double value, c10d::ReduceOp::RedOpType op = c10d::ReduceOp::SUM);
  // The group of the ranks with this `color`; see comm::split().
  c10::intrusive_ptr<c10d::ProcessGroup> split(int color, int key = 0);

  World(World&&) = default;
  World& operator=(World&&) = default;
  ~World();

 private:
  friend World init(const InitOptions& options);
  friend class ElasticWorld;
  World() = default;
  // Makes the default group; rank, host and store are known. Collective.
  void begin(std::vector<Enrolment> members, std::chrono::milliseconds timeout);

  RankEnv ranks_;
  std::string host_;
  std::vector<std::string> hosts_;
  std::string backend_;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  int exceptions_ = 0;       // in flight when the job was joined
  std::uint64_t calls_ = 0;  // of barrier() and all_reduce()
};

// Joins the job that torchrun, mpirun, srun or another launcher started (see rank_env.h), or a job
// of one rank where none did, and logs which launcher won. To be called before the program starts
// threads, since it sets environment variables (see comm::prepare_process()). Collective. Throws
// InvalidArgument for contradicting variables, an unknown backend, or ranks that disagree on size,
// backend, timeout or a variable that must agree (common/env.h); CommError when a peer does not
// come within the timeout or the store's port is taken. What ails one rank is thrown on every rank
// that it could be told to.
World init(const InitOptions& options = {});

}  // namespace thinwire::launch
