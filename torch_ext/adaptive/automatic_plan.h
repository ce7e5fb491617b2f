// `auto` in training: the plan that follows the time of the steps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/torch_ext/adaptive/automatic_choice.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire {

// One setting that a search of `auto` has tried. Seconds, see WindowTimes.
struct AutomaticTrial {
  std::string setting;
  double averaged = 0, exposed = 0;
};

// What `auto` has found out; all empty or zero for other specs.
struct AutomaticSummary {
  std::string setting;                // in use now
  std::string reason;                 // why; empty while the first search goes on
  std::vector<AutomaticTrial> tried;  // by the last search, in its order
  int searches = 0;                   // that have ended
};

// Measures a few steps with each setting, see AutomaticChoice, and goes on with the best one. Every
// rank makes the same calls for the same steps, on the thread that owns the group.
class AutomaticPlan {
 public:
  // `start`: the settings of all layers, of which those of automatic.layers are chosen here.
  // The first search begins at step `first`.
  AutomaticPlan(c10::intrusive_ptr<c10d::ProcessGroup> group, AutomaticCompression automatic,
                comm::Plan start, std::int64_t first);

  // This rank's medians over the last so many steps.
  using Measure = std::function<WindowTimes(std::int64_t steps)>;

  // Before the first bucket of a step; calling it again for the same step does nothing. True if the
  // plan changed. Now and then collective, at the same steps on all ranks. After steps of which it
  // was not told, as when a training goes on from a saved state, it searches anew.
  bool begin_step(std::int64_t step, const Measure& measure);

  const comm::Plan& plan() const { return plan_; }
  const AutomaticSummary& summary() const { return summary_; }

 private:
  WindowTimes agreed(const WindowTimes& own);
  bool look(std::int64_t step, const Measure& measure);
  void apply();
  void tell(std::int64_t step);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const AutomaticCompression automatic_;
  AutomaticChoice choice_;
  // All kept, because the averager may point to their codecs.
  std::vector<comm::LayerSetting> settings_;
  comm::Plan plan_;
  std::int64_t next_step_;
  std::int64_t window_ends_;
  std::int64_t first_look_;  // before it does, while settings are tried
  AutomaticSummary summary_;
};

}  // namespace thinwire
