#include "thinwire/launch/world.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/full.h>
#include <atomic>
#include <cstdlib>
#include <exception>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/backend/split.h"
#include "thinwire/comm/backend/torch_version.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/spec.h"
#include "thinwire/launch/elastic_round.h"
#include "thinwire/launch/enrolment.h"
#include "thinwire/launch/host.h"
#include "thinwire/launch/job_store.h"

namespace thinwire::launch {
namespace {

std::string asked_backend(const InitOptions& options) {
  const std::string name = options.backend == "auto" ? Env::get().backend : options.backend;
  const std::vector<std::string> known = {"auto", "mpi", "gloo", "nccl"};
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    const std::string near = nearest_name(name, known);
    throw InvalidArgument(concat("unknown backend '", name, "', known are auto, mpi, gloo and nccl",
                                 near.empty() ? "" : concat("; did you mean ", near, "?")));
  }
  return name;
}

int usable_gpus() {
  if (Env::get().disable_cuda || !comm::nccl_backend_usable()) return 0;
  return at::detail::getCUDAHooks().getNumGPUs();
}

// See Note [Variables that must agree].
std::vector<std::pair<std::string, std::string>> settings_of(std::chrono::milliseconds timeout) {
  std::vector<std::pair<std::string, std::string>> settings = {
      {"the timeout, by THINWIRE_TIMEOUT or the program", std::to_string(timeout.count()) + " ms"}};
  for (const Env::Variable& variable : Env::get().variables())
    if (variable.must_agree) settings.emplace_back(variable.name, variable.value);
  return settings;
}

// What this rank tells the others. Its own mistakes are told too, so that they do not wait for it.
Enrolment describe(const RankEnv& ranks, const std::string& host, const InitOptions& options,
                   std::chrono::milliseconds timeout) {
  Enrolment mine;
  mine.size = ranks.size;
  mine.local_rank = ranks.local_rank;
  mine.host = host;
  try {
    comm::check_torch_version();
    check(options.timeout.count() >= 0, "InitOptions::timeout must not be negative, got ",
          options.timeout.count(), " ms");
    mine.backend = asked_backend(options);
    mine.has_mpi = comm::mpi_backend_usable();
    mine.gpus = usable_gpus();
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    mine.visible_devices = visible ? visible : "";
    mine.settings = settings_of(timeout);
  } catch (const InvalidArgument& error) {
    mine.problem = error.what();
  }
  return mine;
}

// Before the variables are known to be well formed: a rank whose own are not still joins, in order
// to tell the others.
std::chrono::milliseconds timeout_of(const InitOptions& options) {
  if (options.timeout.count() > 0) return options.timeout;
  try {
    return Env::get().timeout;
  } catch (const InvalidArgument&) {
    return std::chrono::minutes(5);
  }
}

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
  complete_local_ranks(ranks, members);
  world.backend_ = choose_backend(members, ranks.launcher);
  for (const auto& member : members) world.hosts_.push_back(member.host);

  comm::ProcessGroupOptions group_options;
  group_options.timeout = timeout;
  group_options.cuda_device =
      std::max(cuda_device_of(members[static_cast<std::size_t>(ranks.rank)]), 0);
  world.group_ = comm::make_process_group(
      world.backend_, c10::make_intrusive<c10d::PrefixStore>("default_group", world.store_),
      ranks.rank, ranks.size, group_options);

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
