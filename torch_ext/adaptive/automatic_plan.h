// `auto` in training: the plan that follows the time of the steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/plan.h"
#include "thinwire/torch_ext/adaptive/automatic_choice.h"
#include "thinwire/torch_ext/adaptive/layer_choice.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire {

// One setting that a search of `auto` has tried. Seconds, see WindowTimes.
struct AutomaticTrial {
  std::string setting;
  double step = 0, exposed = 0;
};

// What `auto` has found out; all empty or zero for other specs.
struct AutomaticSummary {
  // In use now: one of all layers, or how many of them have which, see AutomaticPlan::plan().
  std::string setting;
  std::string reason;                 // why; empty while the first search goes on
  std::vector<AutomaticTrial> tried;  // by the last search, in its order
  int searches = 0;                   // that have ended
};

// What a rank sees of some steps, in which each of the buckets went the same way.
struct MeasuredSteps {
  struct Bucket {
    std::vector<std::string> layers;
    double bytes = 0;  // of the gradients, uncompressed
    double ready = 0;  // seconds after the forward pass
    double work = 0;   // of the communication thread, waiting for messages included
  };
  WindowTimes times;
  std::vector<Bucket> buckets = {};  // in the order in which they are averaged, as on all ranks
};

// Measures a few steps with each setting, see AutomaticChoice, and goes on with the best one. Where
// that compresses, one step's gradients are looked at, which costs what encoding them with the
// settings that were tried does, and settings by layer are tried, see LayerTask; where these are
// slower than all layers with one, once more with half of the time to give away. Every rank makes
// the same calls for the same steps, on the thread that owns the group.
class AutomaticPlan {
 public:
  // `start`: the settings of all layers, of which those of automatic.layers are chosen here.
  // The first search begins at step `first`.
  AutomaticPlan(c10::intrusive_ptr<c10d::ProcessGroup> group, AutomaticCompression automatic,
                comm::Plan start, std::int64_t first);

  // This rank's medians over the last so many steps.
  using Measure = std::function<MeasuredSteps(std::int64_t steps)>;

  // Before the first bucket of a step; calling it again for the same step does nothing. True if the
  // plan changed. Now and then collective, at the same steps on all ranks. After steps of which it
  // was not told, as when a training goes on from a saved state, it searches anew.
  bool begin_step(std::int64_t step, const Measure& measure);
  // Every bucket, before it is averaged and after begin_step().
  void observe(const comm::Bucket& bucket);

  const comm::Plan& plan() const { return plan_; }
  const AutomaticSummary& summary() const { return summary_; }

 private:
  // By layer, after the step whose gradients are looked at.
  struct ByLayer {
    std::vector<double> squared_errors;  // of layer l with setting i at l · settings + i
    LayerTask task;                      // the same on all ranks, once it has layers
    std::vector<std::size_t> settings;   // by layer of the task
    std::vector<std::size_t> layers;     // which they are
    double share = 0;
    bool tries = false;
  };

  WindowTimes agreed(const WindowTimes& own);
  bool look(std::int64_t step, const Measure& measure);
  void forget_search();
  void begin_by_layer();
  bool agree_on_task();
  bool try_by_layer(std::int64_t step);
  bool judge_by_layer(std::int64_t step, const Measure& measure);
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
  // Of the search: what this rank measured of each setting, by its place in the ladder.
  std::vector<std::optional<MeasuredSteps>> of_setting_;
  std::optional<ByLayer> by_layer_;  // while settings by layer are made and tried, and then used
  AutomaticSummary summary_;
};

}  // namespace thinwire
