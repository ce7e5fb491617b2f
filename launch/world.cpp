#include "thinwire/launch/world.h"

#include <ATen/ops/full.h>
#include <atomic>
#include <exception>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/backend/split.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/elastic_round.h"
#include "thinwire/launch/enrolment.h"
#include "thinwire/launch/host.h"
#include "thinwire/launch/job_store.h"
#include "thinwire/launch/self_description.h"

namespace thinwire::launch {
namespace {

// Keys of one job and one call of init(), which every rank makes equally often.
std::string prefix_of(const RankEnv& ranks) {
  static std::atomic<int> calls{0};
  return "thinwire/" + ranks.run_id + "/" + std::to_string(calls.fetch_add(1));
}

// A store that torchrun's agent serves outlives the workers of a round; any other begins with rank
// 0.
Round enrol_here(const c10::intrusive_ptr<c10d::Store>& store, const RankEnv& ranks,
                 const Enrolment& mine, std::chrono::milliseconds timeout) {
  if (ranks.agent_store) return enrol_in_round(store, ranks.rank, mine, timeout);
  return {store, enrol(store, ranks.rank, mine, timeout)};
}

}  // namespace

World init(const InitOptions& options) {
  comm::prepare_process();
  World world;
  world.exceptions_ = std::uncaught_exceptions();
  RankEnv& ranks = world.ranks_;
  ranks = read_rank_env();
  world.host_ = host_name();
  log::set_identity(ranks.rank, world.host_);
  const auto timeout = timeout_of(options);
  const Enrolment mine = describe(ranks, world.host_, options, timeout);

  auto [store, members] = enrol_here(
      c10::make_intrusive<c10d::PrefixStore>(prefix_of(ranks), connect_store(ranks, timeout)),
      ranks, mine, timeout);
  world.store_ = std::move(store);  // from here on ~World leaves the job
  world.begin(std::move(members), timeout);
  const auto text = concat(
      "rank ", ranks.rank, " of ", ranks.size, ", told by ",
      ranks.launcher == Launcher::kNone ? "no launcher, running alone" : name_of(ranks.launcher),
      ", over ", world.backend_);
  if (ranks.rank == 0) {
    log::info(text);
  } else {
    log::debug(text);
  }
  return world;
}

void World::begin(std::vector<Enrolment> members, std::chrono::milliseconds timeout) {
  complete_local_ranks(ranks_, members);
  backend_ = choose_backend(members, ranks_.launcher);
  for (const auto& member : members) hosts_.push_back(member.host);

  comm::ProcessGroupOptions group_options;
  group_options.timeout = timeout;
  group_options.cuda_device =
      std::max(cuda_device_of(members[static_cast<std::size_t>(rank())]), 0);
  group_ = comm::make_process_group(backend_,
                                    c10::make_intrusive<c10d::PrefixStore>("default_group", store_),
                                    rank(), size(), group_options);
}

World::~World() {
  // On the way out of a failed program: rank 0 must not take the store away, nor a launcher end the
  // job, before the other ranks could learn from the store what happened.
  if (store_ && std::uncaught_exceptions() > exceptions_)
    leave_failed_job(*store_, size(), comm::ranks_found_silent());
}

void World::barrier() {
  comm::run_collective(*group_, "the barrier", calls_++, [&] { return group_->barrier(); });
}

double World::all_reduce(double value, c10d::ReduceOp::RedOpType op) {
  const bool is_mean = op == c10d::ReduceOp::AVG;
  const at::Device device = group_->getBoundDeviceId().value_or(at::Device(at::kCPU));
  std::vector<at::Tensor> tensors = {
      at::full({1}, value, at::TensorOptions(at::kDouble)).to(device)};
  c10d::AllreduceOptions options;
  // Not every backend knows means.
  options.reduceOp = is_mean ? c10d::ReduceOp::SUM : op;
  comm::run_collective(*group_, "the reduction of a value", calls_++,
                       [&] { return group_->allreduce(tensors, options); });
  const double result = tensors[0].item<double>();
  return is_mean ? result / size() : result;
}

c10::intrusive_ptr<c10d::ProcessGroup> World::split(int color, int key) {
  return comm::split(group_, color, key);
}

}  // namespace thinwire::launch
