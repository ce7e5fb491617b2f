#include "thinwire/examples/support/resumable.h"

#include <ATen/ops/tensor.h>

#include <mutex>
#include <sstream>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::examples {
namespace {

// Names the first line in which two texts of settings differ.
void check_settings(const std::string& saved, const std::string& asked) {
  if (saved == asked) return;
  std::istringstream old_lines(saved), new_lines(asked);
  std::string was, now;
  do {
    was.clear();
    now.clear();
    std::getline(old_lines, was);
    std::getline(new_lines, now);
  } while (was == now && (old_lines || new_lines));
  throw InvalidArgument(concat("--checkpoint: the training that was saved had ",
                               was.empty() ? "no more settings" : was, ", this one has ",
                               now.empty() ? "no more" : now,
                               "; give it the same options or another folder"));
}

Checkpoint::Part number_part(double& number, Checkpoint::AcrossWorlds across_worlds) {
  return {[&number] {
            return NamedTensors{{"value", at::tensor({number}, at::kDouble)}};
          },
          [&number](const NamedTensors& saved) {
            const auto found = saved.find("value");
            if (found == saved.end()) return;  // a rank that the old job had not
            check(found->second.scalar_type() == at::kDouble && found->second.numel() == 1,
                  "a saved number is no float64 but ", toString(found->second.scalar_type()));
            number = found->second.item<double>();
          },
          across_worlds};
}

}  // namespace

Resumable::Resumable(const launch::World& world, const CommonOptions& options, std::string settings)
    : leader_(world.rank() == 0),
      every_(options.checkpoint_every),
      directory_(options.checkpoint.string()),
      settings_(std::move(settings)) {
  if (options.checkpoint.empty()) return;
  checkpoint_ = std::make_unique<Checkpoint>(
      world.group(), CheckpointOptions{.directory = options.checkpoint, .asynchronous = true});
  stop_ = std::make_unique<StopSignal>(world.group());
  // The first part, so that what differs is named before what follows from it.
  checkpoint_->add("settings", {[this] {
                                  return NamedTensors{{"text", text_tensor(settings_)}};
                                },
                                [this](const NamedTensors& saved) {
                                  check_settings(text_of(saved, "text"), settings_);
                                }});
  checkpoint_->add_random_state();
}

void Resumable::add_number(const std::string& name, std::int64_t& number) {
  add(name, Checkpoint::Part{
                [&number] {
                  return NamedTensors{{"value", integer_tensor(number)}};
                },
                [&number](const NamedTensors& saved) { number = integer_of(saved, "value"); }});
}

void Resumable::add_number(const std::string& name, double& number) {
  add(name, number_part(number, Checkpoint::AcrossWorlds::kMerged));
}

void Resumable::add_own_number(const std::string& name, double& number) {
  add(name, number_part(number, Checkpoint::AcrossWorlds::kOwn));
}

void Resumable::add_generator(const std::string& name, at::Generator& generator) {
  add(name, Checkpoint::Part{[&generator] {
                               const std::lock_guard lock(generator.mutex());
                               return NamedTensors{{"state", generator.get_state()}};
                             },
                             [&generator](const NamedTensors& saved) {
                               const auto found = saved.find("state");
                               if (found == saved.end()) return;
                               const std::lock_guard lock(generator.mutex());
                               generator.set_state(found->second);
                             },
                             Checkpoint::AcrossWorlds::kOwn});
}

std::int64_t Resumable::load() {
  if (!checkpoint_) return 0;
  const auto step = checkpoint_->load();
  if (step && leader_) log::info("going on after step ", *step, " of ", directory_);
  return step.value_or(0);
}

void Resumable::begin_step() {
  if (stop_) stop_->begin_step();
}

void Resumable::end_step(std::int64_t done, bool last) {
  if (!checkpoint_) return;
  const bool stop = stop_->end_step();
  if (!stop && !last && (every_ == 0 || done % every_ != 0)) return;
  checkpoint_->save(done);
  if (stop || last) checkpoint_->wait();
  if (stop && !last)
    throw Stopped(concat("asked to stop; step ", done, " is saved in ", directory_,
                         ", and the same command goes on from there"));
}

}  // namespace thinwire::examples
