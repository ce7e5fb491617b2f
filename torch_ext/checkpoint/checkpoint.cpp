#include "thinwire/torch_ext/checkpoint/checkpoint.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/api/include/torch/nn/module.h>
#include <torch/csrc/api/include/torch/optim/optimizer.h>
#include <torch/csrc/api/include/torch/serialize.h>

#include <algorithm>
#include <span>
#include <sstream>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/state/merge.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/torch_ext/checkpoint/checkpoint_files.h"
#include "thinwire/torch_ext/compression/agreed_plan.h"

namespace thinwire {
namespace {

constexpr const char* kArchive = "archive";
// Newest steps that ranks tell each other of; older ones would hardly be the newest in common.
constexpr std::size_t kStepsTold = 64;

// name -> tensor of a module's parameters and buffers, which share its memory.
std::map<std::string, at::Tensor> tensors_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace(item.key(), item.value());
  for (const auto& item : module.named_buffers()) tensors.emplace(item.key(), item.value());
  return tensors;
}

void load_module(const std::string& part, torch::nn::Module& module, const NamedTensors& saved) {
  const at::NoGradGuard no_grad;
  auto tensors = tensors_of(module);
  for (const auto& [name, tensor] : saved)
    check(tensors.contains(name), "the checkpoint's '", part, "' has '", name,
          "', which this module has not");
  for (auto& [name, tensor] : tensors) {
    const auto found = saved.find(name);
    check(found != saved.end(), "the checkpoint's '", part, "' has no '", name, "'");
    check(found->second.sizes() == tensor.sizes() &&
              found->second.scalar_type() == tensor.scalar_type(),
          "the checkpoint's '", part, "/", name, "' is ", toString(found->second.scalar_type()),
          " ", found->second.sizes(), ", the module's ", toString(tensor.scalar_type()), " ",
          tensor.sizes());
  }
  for (auto& [name, tensor] : tensors) tensor.copy_(saved.at(name));
}

NamedTensors optimizer_state(const torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::ostringstream out;
  archive.save_to(out);
  return {{kArchive, text_tensor(std::move(out).str())}};
}

void load_optimizer(torch::optim::Optimizer& optimizer, const NamedTensors& saved) {
  std::istringstream in(text_of(saved, kArchive));
  torch::serialize::InputArchive archive;
  archive.load_from(in);
  optimizer.load(archive);
}

// A copy of a state that later steps do not change.
NamedTensors copied(const NamedTensors& state) {
  NamedTensors copy;
  for (const auto& [name, tensor] : state) copy.emplace(name, tensor.detach().cpu().clone());
  return copy;
}

}  // namespace

// What a rank can load: a step, and the size of the job that saved it.
struct Checkpoint::Saved {
  std::int64_t step = 0;
  int world = 0;
  auto operator<=>(const Saved&) const = default;
};

Checkpoint::Checkpoint(c10::intrusive_ptr<c10d::ProcessGroup> group, CheckpointOptions options)
    : group_(std::move(group)), options_(std::move(options)) {
  check(group_ != nullptr, "a checkpoint needs a process group, got a null pointer");
  check(!options_.directory.empty(), "a checkpoint needs the name of a directory");
  check(options_.keep >= 1, "keep must be at least 1, got ", options_.keep);
  name_ = detail::next_name(*group_, "checkpoint");
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
  add(name, Part{[&module] { return NamedTensors(tensors_of(module)); },
                 [&module, name](const NamedTensors& saved) { load_module(name, module, saved); }});
}

void Checkpoint::add(const std::string& name, torch::optim::Optimizer& optimizer) {
  add(name, Part{[&optimizer] { return optimizer_state(optimizer); },
                 [&optimizer](const NamedTensors& saved) { load_optimizer(optimizer, saved); },
                 AcrossWorlds::kAnyRanks});
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
  for (const auto& [name, part] : parts_) insert_part(all, name + "/", copied(part.save()));
  return all;
}

void Checkpoint::write(std::int64_t step, const NamedTensors& tensors) const {
  detail::write_checkpoint_file({options_.directory, step, group_->getSize(), group_->getRank()},
                                tensors);
  remove_old_steps(step);
}

// This rank's files of steps beyond the newest, and folders that are empty then. What fails here
// costs disk space, nothing else.
void Checkpoint::remove_old_steps(std::int64_t newest) const {
  const int rank = group_->getRank();
  int kept = 0;
  const auto steps = detail::checkpoint_steps(options_.directory);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (step->first > newest) continue;
    if (++kept <= options_.keep) continue;
    std::error_code ignored;
    for (const auto& [world, ranks] : step->second) {
      if (!ranks.contains(rank) && world == group_->getSize()) continue;
      const detail::CheckpointFile file{options_.directory, step->first, world, rank};
      std::filesystem::remove(file.manifest(), ignored);
      std::filesystem::remove(file.tensors(), ignored);
      std::filesystem::remove(file.folder(), ignored);
    }
  }
}

void Checkpoint::save(std::int64_t step) {
  check(step >= 0, "a step is not negative, got ", step);
  wait();
  const auto tensors =
      comm::guard(*group_, "copying the state for a checkpoint", calls_, [&] { return collect(); });
  if (options_.asynchronous) {
    writing_ = std::async(std::launch::async, [this, step, tensors] { write(step, tensors); });
    return;
  }
  comm::agree_on_result(*group_, concat(name_, "/save", calls_++), "the step that is saved", [&] {
    write(step, tensors);
    return concat("step ", step);
  });
}

void Checkpoint::wait() {
  if (!options_.asynchronous) return;
  comm::agree_on_result(*group_, concat(name_, "/wait", calls_++), "the last checkpoint",
                        [&]() -> std::string {
                          if (writing_.valid()) writing_.get();
                          return "written";
                        });
}

std::optional<std::int64_t> Checkpoint::load() {
  wait();
  const int world = group_->getSize(), rank = group_->getRank();
  // What this rank could load, newest first; a job of another size needs the files of all its
  // ranks.
  std::vector<Saved> own;
  for (const auto& [step, worlds] : detail::checkpoint_steps(options_.directory)) {
    for (const auto& [size, ranks] : worlds) {
      if (size == world ? ranks.contains(rank) : std::ssize(ranks) == size)
        own.push_back({step, size});
    }
  }
  std::ranges::sort(own, std::greater<>());
  if (own.size() > kStepsTold) own.resize(kStepsTold);
  std::vector<std::int64_t> mine(2 * kStepsTold, -1);
  for (std::size_t i = 0; i < own.size(); ++i) {
    mine[2 * i] = own[i].step;
    mine[2 * i + 1] = own[i].world;
  }
  const std::vector<std::int64_t> all =
      comm::Peers(*group_).all_gather(mine, "looking for a checkpoint", calls_);
  if (std::ranges::all_of(all, [](std::int64_t number) { return number < 0; })) return std::nullopt;
  const auto has = [&](int of_rank, const Saved& saved) {
    const auto told = std::span(all).subspan(static_cast<std::size_t>(of_rank) * mine.size());
    for (std::size_t i = 0; i < mine.size(); i += 2)
      if (told[i] == saved.step && told[i + 1] == saved.world) return true;
    return false;
  };
  const auto newest = std::ranges::find_if(own, [&](const Saved& saved) {
    for (int r = 0; r < world; ++r)
      if (!has(r, saved)) return false;
    return true;
  });
  std::vector<NamedTensors> of_ranks;
  bool same_world = true;
  comm::agree_on_result(*group_, concat(name_, "/load", calls_++), "the checkpoint", [&] {
    check(newest != own.end(), "no step under ", options_.directory.string(),
          " is complete on every rank; this rank has ",
          own.empty() ? std::string("none")
                      : concat("step ", own.front().step, " of ", own.front().world,
                               " rank(s) as its newest"));
    same_world = newest->world == world;
    const detail::CheckpointFile file{options_.directory, newest->step, newest->world, rank};
    for (int r = 0; r < newest->world; ++r) {
      if (same_world && r != rank) continue;
      auto one = file;
      one.rank = r;
      of_ranks.push_back(detail::read_checkpoint_file(one));
    }
    return concat("step ", newest->step, " of ", newest->world, " ranks");
  });
  load_parts(of_ranks, same_world);
  return newest->step;
}

void Checkpoint::load_parts(const std::vector<NamedTensors>& of_ranks, bool same_world) {
  for (const auto& [name, part] : parts_) {
    NamedTensors state;
    comm::agree_on_result(
        *group_, concat(name_, "/part", calls_++), concat("the part '", name, "'"),
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
          return std::string("known");
        });
    comm::guard(
        *group_, [&, &name = name] { return concat("loading the part '", name, "'"); }, calls_,
        [&, &part = part] { part.load(state); });
  }
}

}  // namespace thinwire
