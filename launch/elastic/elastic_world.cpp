#include "thinwire/launch/elastic/elastic_world.h"

#include <algorithm>
#include <exception>
#include <utility>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/abandon.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/elastic/membership.h"
#include "thinwire/launch/enrolment.h"
#include "thinwire/launch/host.h"
#include "thinwire/launch/job_store.h"
#include "thinwire/launch/self_description.h"

namespace thinwire::launch {
namespace {

constexpr const char* kHasBegun = "has_begun";

RankEnv elastic_ranks(const ElasticOptions& options) {
  check(options.min_ranks >= 0, "min_ranks must not be negative, got ", options.min_ranks);
  check(options.patience.count() > 0 && options.dead_after.count() > 0 &&
            options.connect_timeout.count() > 0,
        "patience, dead_after and connect_timeout must be positive, got ", options.patience.count(),
        ", ", options.dead_after.count(), " and ", options.connect_timeout.count(), " ms");
  check(options.init.backend != "mpi",
        "a job over MPI ends with the first rank that dies; take gloo or nccl for one whose ranks "
        "may change");
  RankEnv ranks = read_rank_env();
  if (!Env::get().store.empty()) {
    use_store(ranks, Env::get().store);
    ranks.run_id.clear();  // its ranks may be started by several launchers
  }
  check(ranks.agent_store,
        "the store of a job whose ranks may change must outlive any of them: start `thinwire store "
        "--port P` on some host and set THINWIRE_STORE=HOST:P for every rank, or use torchrun, "
        "whose agent serves one");
  return ranks;
}

// "lost rank 2; 1 new rank"
std::string who_has_changed(const Roster& before, const Roster& after) {
  std::vector<int> lost;
  for (int rank = 0; rank < before.size(); ++rank)
    if (after.rank_of(before.ranks[static_cast<std::size_t>(rank)].id) < 0) lost.push_back(rank);
  const auto news = std::ranges::count_if(
      after.ranks, [&](const Candidate& rank) { return before.rank_of(rank.id) < 0; });
  return concat(
      lost.empty() ? "" : concat("; lost rank(s) ", comm::list_of(lost), " of ", before.size()),
      before.generation > 0 && news > 0 ? concat("; ", news, " new") : "");
}

}  // namespace

ElasticWorld::ElasticWorld(const ElasticOptions& options)
    : options_(options), timeout_(timeout_of(options.init)) {
  comm::prepare_process();
  if (options_.init.backend == "auto") options_.init.backend = Env::get().backend;
  if (options_.init.backend == "auto") options_.init.backend = "gloo";
  ranks_ = elastic_ranks(options_);
  host_ = host_name();
  log::set_identity(ranks_.rank, host_);
  // With several, which one is this process's would follow its place on the host, and that changes.
  const int gpus = describe(ranks_, host_, options_.init, timeout_).gpus;
  check(options_.init.backend != "nccl" || gpus < 2, "this process sees ", gpus,
        " GPUs; in a job whose ranks may change each must see its own alone: set "
        "CUDA_VISIBLE_DEVICES for each process");
  const auto job = connect_store(ranks_, timeout_);
  store_ = c10::make_intrusive<c10d::PrefixStore>("thinwire/elastic/" + ranks_.run_id, job);
  const bool told = ranks_.launcher != Launcher::kNone;
  membership_ = std::make_unique<Membership>(
      store_, MembershipOptions{.hint = told ? ranks_.rank : 0,
                                .expected = std::max(told ? ranks_.size : 1, options_.min_ranks),
                                .host = reachable_address(),
                                .min_ranks = options_.min_ranks,
                                .patience = options_.patience,
                                .dead_after = options_.dead_after});
  begin_alone();
}

ElasticWorld::~ElasticWorld() {
  membership_->watch_no_longer();
  if (generation() > 0) comm::abandon(*group());
}

std::int64_t ElasticWorld::generation() const {
  return membership_->roster().generation;
}

void ElasticWorld::begin(RankEnv ranks, c10::intrusive_ptr<c10d::Store> store,
                         std::chrono::milliseconds timeout) {
  World next;
  next.exceptions_ = std::uncaught_exceptions();
  next.ranks_ = std::move(ranks);
  next.host_ = host_;
  auto members =
      enrol(store, next.rank(), describe(next.ranks_, host_, options_.init, timeout_), timeout);
  next.store_ = std::move(store);
  next.begin(std::move(members), timeout);
  // Gloo's threads may wait in the group of the world before.
  auto before = std::make_shared<std::optional<World>>(std::move(world_));
  world_ = std::move(next);
  comm::retire(std::move(before));
}

void ElasticWorld::begin_alone() {
  RankEnv alone = ranks_;
  alone.rank = 0;
  alone.size = 1;
  begin(alone, c10::make_intrusive<c10d::HashStore>(), timeout_);
}

ElasticWorld::Place ElasticWorld::join_next(bool is_new, const std::vector<std::int64_t>& finished,
                                            const std::string& why) {
  const Roster before = membership_->roster();
  if (world_ && before.generation > 0) {
    // So that those who wait in an exchange with this rank leave it.
    try {
      comm::post_failure(*group(), "changing the world", why);
    } catch (const std::exception& error) {
      log::debug("the store does not take a failure: ", error.what());
    }
    comm::abandon(*group());
  }
  const bool as_it_was = membership_->join_next(is_new, finished);
  const Roster& roster = membership_->roster();
  const int rank = roster.rank_of(membership_->id());
  // To begin anew would look like going on.
  if (roster.ranks.front().is_new && store_->check({kHasBegun}))
    throw CommError(-1, "changing the world", 0, "no rank of the worlds before is left");
  if (!as_it_was)
    log::warn("the others have gone on without this rank, as world ", roster.generation - 1,
              " or earlier; it joins as a new one");
  RankEnv ranks = ranks_;
  ranks.rank = rank;
  ranks.size = roster.size();
  log::set_identity(rank, host_);
  begin(std::move(ranks),
        c10::make_intrusive<c10d::PrefixStore>(concat("world/", roster.generation), store_),
        options_.connect_timeout);
  membership_->watch(*group());
  log::info("world ", roster.generation, ": rank ", rank, " of ", roster.size(),
            who_has_changed(before, roster), why.empty() ? "" : concat(" (", why, ")"));
  Place place;
  place.is_new = is_new || !as_it_was;
  place.furthest = roster.ranks.front().finished;
  place.all_are_new = roster.ranks.front().is_new;
  for (const Candidate& one : roster.ranks) {
    place.somebody_is_new = place.somebody_is_new || (one.is_new && !place.all_are_new);
    place.somebody_is_behind =
        place.somebody_is_behind || one.is_new || one.finished != place.furthest;
  }
  return place;
}

void ElasticWorld::settle() {
  store_->set(kHasBegun, std::vector<std::uint8_t>{1});
  comm::set_timeout(*group(), timeout_);
  membership_->world_is_made();
}

bool ElasticWorld::change_is_called() const {
  return membership_->change_is_called();
}

void ElasticWorld::finish() {
  membership_->finish();
}

bool ElasticWorld::all_have_finished() {
  return membership_->all_have_finished();
}

}  // namespace thinwire::launch
