#include "thinwire/torch_ext/checkpoint/checkpoint.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <span>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/state/merge.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/thread_priority.h"
#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"
#include "thinwire/torch_ext/checkpoint/optimizer_state.h"
#include "thinwire/torch_ext/checkpoint/program_parts.h"

namespace thinwire {
namespace {

// Newest steps that ranks tell each other of; older ones would hardly be the newest in common.
constexpr std::size_t kStepsTold = 64;
constexpr std::size_t kNumbersOfAStep = 3;

// So that no two runs have the same one.
std::string random_number() {
  std::random_device device;
  return std::to_string((std::uint64_t{device()} << 32) | device());
}

// A copy of a state that later steps do not change, in the host's memory: in that of `before`, a
// copy of the same state at another time, where a tensor has the type and shape that it had then.
// Fresh memory costs several times what the copy does.
NamedTensors copied(const NamedTensors& state, const NamedTensors& before) {
  NamedTensors copies;
  for (const auto& [name, tensor] : state) {
    check(tensor.defined(), "'", name, "' of a state to be saved is undefined");
    const auto kept = before.find(name);
    const bool fits = kept != before.end() && kept->second.scalar_type() == tensor.scalar_type() &&
                      kept->second.sizes() == tensor.sizes();
    at::Tensor copy = fits ? kept->second : at::empty(tensor.sizes(), tensor.scalar_type());
    copy.copy_(tensor.detach());
    copies.emplace(name, std::move(copy));
  }
  return copies;
}

}  // namespace

// What a rank can load: a step, the size of the job that saved it, and which save it was.
struct Checkpoint::Saved {
  std::int64_t step = 0;
  std::int64_t world = 0;
  std::int64_t save = 0;
  auto operator<=>(const Saved&) const = default;
};

Checkpoint::Checkpoint(c10::intrusive_ptr<c10d::ProcessGroup> group, CheckpointOptions options)
    : group_(std::move(group)), options_(std::move(options)) {
  check(group_ != nullptr, "a checkpoint needs a process group, got a null pointer");
  name_ = comm::next_name(*group_, "checkpoint");
  comm::agree_on_result(*group_, concat(name_, "/options"), "the checkpoint's options", [&] {
    check(!options_.directory.empty(), "a checkpoint needs the name of a directory");
    check(options_.keep >= 1, "keep must be at least 1, got ", options_.keep);
    return concat("keep ", options_.keep, "\nasynchronous ", options_.asynchronous ? "on" : "off");
  });
  const std::string run =
      group_->getStore()->compareSet(concat("thinwire/", name_, "/run"), "", random_number());
  run_ = std::stoull(run);
}

Checkpoint::~Checkpoint() {
  try {
    if (writing_.valid()) writing_.get();
  } catch (const std::exception& error) {
    log::error("a checkpoint was not written: ", error.what());
  }
}

void Checkpoint::add(const std::string& name, Part part) {
  check(!name.empty() && name.find('/') == std::string::npos,
        "a part's name must not be empty nor have a '/', got '", name, "'");
  check(std::ranges::none_of(parts_, [&](const auto& known) { return known.first == name; }),
        "the checkpoint has a part '", name, "' already");
  parts_.emplace_back(name, std::move(part));
}

void Checkpoint::add(const std::string& name, torch::nn::Module& module) {
  add(name, Part{[&module] { return detail::module_tensors(module); },
                 [&module, name](const NamedTensors& saved) {
                   detail::load_module(concat("the checkpoint's '", name, "'"), module, saved);
                 }});
}

void Checkpoint::add(const std::string& name, torch::optim::Optimizer& optimizer) {
  add(name, Part{[&optimizer] { return detail::optimizer_tensors(optimizer); },
                 [&optimizer](const NamedTensors& saved) {
                   detail::load_optimizer_tensors(optimizer, saved);
                 },
                 AcrossWorlds::kAnyRanks});
}

void Checkpoint::add(const std::string& name, torch::optim::Optimizer& optimizer,
                     std::function<NamedTensors()> pieces) {
  add(name, Part{[&optimizer, pieces] { return thinwire::optimizer_state(optimizer, pieces()); },
                 [&optimizer, pieces](const NamedTensors& saved) {
                   load_optimizer_state(optimizer, pieces(), saved);
                 }});
}

void Checkpoint::add_random_state() {
  const auto generator = [] { return at::globalContext().defaultGenerator(at::kCPU); };
  add("random", Part{[generator] {
                       auto chosen = generator();
                       const std::lock_guard lock(chosen.mutex());
                       return NamedTensors{{"cpu", chosen.get_state()}};
                     },
                     [generator](const NamedTensors& saved) {
                       const auto found = saved.find("cpu");
                       if (found == saved.end()) return;  // a rank that the old job had not
                       auto chosen = generator();
                       const std::lock_guard lock(chosen.mutex());
                       chosen.set_state(found->second);
                     },
                     AcrossWorlds::kOwn});
}

NamedTensors Checkpoint::collect() const {
  NamedTensors all;
  for (const auto& [name, part] : parts_) insert_part(all, name + "/", part.save());
  return all;
}

void Checkpoint::write(std::int64_t step, std::int64_t save, const NamedTensors& tensors) const {
  detail::write_checkpoint_file(
      {options_.directory, step, group_->getSize(), group_->getRank(), save}, tensors);
}

// All ranks have `step`. Removes this rank's files of steps before the last options.keep of which
// that is known: a step that a crash left incomplete takes the place of none. What fails here costs
// disk space, nothing else.
void Checkpoint::note_complete(std::int64_t step) {
  complete_.erase(complete_.lower_bound(step), complete_.end());  // of before the job went back
  complete_.insert(step);
  if (std::ssize(complete_) < options_.keep) return;
  const std::int64_t oldest = *std::prev(complete_.end(), options_.keep);
  complete_.erase(complete_.begin(), complete_.find(oldest));
  try {
    for (const auto& [old, worlds] : detail::checkpoint_steps(options_.directory)) {
      if (old >= oldest) break;
      remove_own_files(old, worlds);
    }
  } catch (const FileError& error) {
    log::warn("old checkpoints stay: ", error.what());
  }
}

void Checkpoint::remove_own_files(std::int64_t step,
                                  const std::map<int, std::map<int, std::int64_t>>& worlds) const {
  std::error_code ignored;
  for (const auto& [world, ranks] : worlds) {
    // The files of ranks that this job has not are shared out among those that it has.
    for (const auto& [of_rank, save] : ranks) {
      if (of_rank % group_->getSize() != group_->getRank()) continue;
      const detail::CheckpointFile file{options_.directory, step, world, of_rank};
      std::filesystem::remove(file.manifest(), ignored);
      std::filesystem::remove(file.tensors(), ignored);
      std::filesystem::remove(file.folder(), ignored);
    }
  }
}

void Checkpoint::save(std::int64_t step) {
  wait();
  const auto tensors = comm::guard(*group_, "copying the state for a checkpoint", calls_, [&] {
    check(step >= 0, "a step is not negative, got ", step);
    if (!options_.asynchronous) return collect();
    copies_ = copied(collect(), copies_);  // wait() has seen to it that nothing is written
    return NamedTensors();
  });
  // Any number that no other save has.
  const auto save = static_cast<std::int64_t>((run_ + calls_) >> 1);
  if (options_.asynchronous) {
    writing_step_ = step;
    writing_ = std::async(std::launch::async, [this, step, save] {
      give_way_to_other_threads();
      write(step, save, copies_);
    });
    return;
  }
  comm::agree_on_result(*group_, concat(name_, "/save", calls_++), "the step that is saved", [&] {
    write(step, save, tensors);
    return concat("step ", step);
  });
  note_complete(step);
}

void Checkpoint::wait() {
  if (!options_.asynchronous) return;
  const bool writes = writing_.valid();
  comm::agree_on_result(*group_, concat(name_, "/wait", calls_++), "the last checkpoint", [&] {
    if (writes) writing_.get();
    return writes ? concat("step ", writing_step_) : std::string("none");
  });
  if (writes) note_complete(writing_step_);
}

// What this rank could load, newest first; a job of another size needs the files of all its ranks.
std::vector<Checkpoint::Saved> Checkpoint::loadable() const {
  const int world = group_->getSize(), rank = group_->getRank();
  std::vector<Saved> own;
  for (const auto& [step, worlds] : detail::checkpoint_steps(options_.directory)) {
    for (const auto& [size, ranks] : worlds) {
      if (size == world) {
        if (const auto mine = ranks.find(rank); mine != ranks.end())
          own.push_back({step, size, mine->second});
        continue;
      }
      const std::int64_t save = ranks.begin()->second;
      if (std::ssize(ranks) == size &&
          std::ranges::all_of(ranks, [&](const auto& one) { return one.second == save; }))
        own.push_back({step, size, save});
    }
  }
  std::ranges::sort(own, std::greater<>());
  if (own.size() > kStepsTold) own.resize(kStepsTold);
  return own;
}

// What each rank could load, by rank. Collective.
std::vector<std::set<Checkpoint::Saved>> Checkpoint::loadable_by_rank(
    const std::vector<Saved>& own) {
  std::vector<std::int64_t> mine(kNumbersOfAStep * kStepsTold, -1);
  for (std::size_t i = 0; i < own.size(); ++i) {
    mine[kNumbersOfAStep * i] = own[i].step;
    mine[kNumbersOfAStep * i + 1] = own[i].world;
    mine[kNumbersOfAStep * i + 2] = own[i].save;
  }
  const std::vector<std::int64_t> all =
      comm::Peers(*group_).all_gather(mine, "looking for a checkpoint", calls_);
  std::vector<std::set<Saved>> by_rank(static_cast<std::size_t>(group_->getSize()));
  for (std::size_t i = 0; i < all.size(); i += kNumbersOfAStep)
    if (all[i] >= 0) by_rank[i / mine.size()].insert({all[i], all[i + 1], all[i + 2]});
  return by_rank;
}

// The files of `saved` that this rank needs: its own, or all of a job of another size.
std::vector<NamedTensors> Checkpoint::read(const Saved& saved) const {
  const int world = static_cast<int>(saved.world);
  const bool same_world = world == group_->getSize();
  std::vector<NamedTensors> of_ranks;
  for (int rank = 0; rank < world; ++rank)
    if (!same_world || rank == group_->getRank())
      of_ranks.push_back(
          detail::read_checkpoint_file({options_.directory, saved.step, world, rank, saved.save}));
  return of_ranks;
}

std::optional<std::int64_t> Checkpoint::load() {
  wait();
  const auto own =
      comm::guard(*group_, "looking for a checkpoint", calls_, [&] { return loadable(); });
  const auto by_rank = loadable_by_rank(own);
  std::set<std::int64_t> steps_somewhere;
  for (const std::set<Saved>& one : by_rank)
    for (const Saved& saved : one) steps_somewhere.insert(saved.step);
  if (steps_somewhere.empty()) return std::nullopt;
  const auto newest = std::ranges::find_if(own, [&](const Saved& saved) {
    return std::ranges::all_of(by_rank, [&](const auto& one) { return one.contains(saved); });
  });
  // A job that ended while its ranks wrote the first checkpoint has left none: some have it, some
  // have nothing.
  if (newest == own.end() && steps_somewhere.size() == 1) {
    if (group_->getRank() == 0)
      log::warn("the only checkpoint under ", options_.directory.string(), ", of step ",
                *steps_somewhere.begin(), ", was not finished on every rank; starting anew");
    return std::nullopt;
  }
  std::vector<NamedTensors> of_ranks;
  comm::agree_on_result(*group_, concat(name_, "/load", calls_++), "the checkpoint", [&] {
    check(newest != own.end(), "no step under ", options_.directory.string(),
          " is complete on every rank; this rank has ",
          own.empty() ? std::string("none")
                      : concat("step ", own.front().step, " of ", own.front().world,
                               " rank(s) as its newest"));
    of_ranks = read(*newest);
    return concat("step ", newest->step, " of ", newest->world, " ranks");
  });
  load_parts(of_ranks, newest->world == group_->getSize());
  complete_ = {newest->step};
  return newest->step;
}

void Checkpoint::load_parts(const std::vector<NamedTensors>& of_ranks, bool same_world) {
  for (const auto& [name, part] : parts_) {
    NamedTensors state;
    comm::agree_on_result(
        *group_, concat(name_, "/part", calls_++), "the parts of the checkpoint",
        [&, &name = name, &part = part] {
          std::vector<NamedTensors> of_part;
          for (const auto& rank : of_ranks) of_part.push_back(part_of(rank, name + "/"));
          const bool known =
              std::ranges::any_of(of_part, [](const auto& one) { return !one.empty(); });
          check(known || part.save().empty(), "the checkpoint has no part '", name,
                "': it is of another program");
          if (same_world) {
            state = of_part.front();
          } else if (part.across_worlds == AcrossWorlds::kMerged) {
            state = merge_states(of_part, group_->getSize());
          } else if (part.across_worlds == AcrossWorlds::kAnyRanks ||
                     group_->getRank() < std::ssize(of_part)) {
            state = of_part[static_cast<std::size_t>(group_->getRank()) % of_part.size()];
          }
          return concat("part ", name);
        });
    comm::guard(
        *group_, [&, &name = name] { return concat("loading the part '", name, "'"); }, calls_,
        [&, &part = part] { part.load(state); });
  }
}

}  // namespace thinwire
