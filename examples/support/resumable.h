// Trainings that go on where the last job stopped: --checkpoint and --checkpoint-every.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>

#include "thinwire/examples/support/common_options.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/checkpoint/stop_signal.h"

namespace thinwire::examples {

// Thrown on all ranks after the step in which the job was asked to stop, when its state is saved.
// run_program() ends with StopSignal::kStoppedExitCode then.
class Stopped : public std::exception {
 public:
  explicit Stopped(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Everything does nothing without --checkpoint.
class Resumable {
 public:
  // `settings`: a line "name=value" for each option that decides the training; a checkpoint of
  // others is refused, naming the first that differs. Collective.
  Resumable(const launch::World& world, const CommonOptions& options, std::string settings);

  // A part of the state, as Checkpoint::add().
  template <typename... Part>
  void add(const std::string& name, Part&&... part) {
    if (checkpoint_) checkpoint_->add(name, std::forward<Part>(part)...);
  }
  // Numbers of the program, equal on all ranks.
  void add_number(const std::string& name, std::int64_t& number);
  void add_number(const std::string& name, double& number);
  // A number that each rank has its own of; a rank that the old job had not keeps its value.
  void add_own_number(const std::string& name, double& number);
  // The generator of a rank's own random numbers, likewise.
  void add_generator(const std::string& name, at::Generator& generator);

  // Restores the newest checkpoint; returns how many steps it had done, 0 where there is none.
  std::int64_t load();

  // Around every step. `done` steps are done now, the last of them where `last`: then, every
  // --checkpoint-every steps, and when the job was asked to stop the state is saved. Throws
  // Stopped.
  void begin_step();
  void end_step(std::int64_t done, bool last);

 private:
  const bool leader_;
  const std::int64_t every_;
  const std::string directory_;
  std::string settings_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<StopSignal> stop_;
};

}  // namespace thinwire::examples
