// All that one rank carries over from step to step, by parameter name: what compression lost, and
// where low rank starts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "thinwire/comm/average/memory/error_feedback.h"
#include "thinwire/comm/average/memory/layer_bases.h"
#include "thinwire/comm/average/memory/momentum_correction.h"
#include "thinwire/comm/average/memory/second_residual.h"
#include "thinwire/comm/average/memory/shared_steps.h"
#include "thinwire/comm/average/memory/warm_start.h"
#include "thinwire/comm/average/plan.h"

namespace thinwire::comm {

// A copy of it, for checkpoints. Bit-exact.
struct AveragerState {
  ErrorFeedback::State residuals;
  MomentumCorrection::State momentum;
  SecondResidual::State second;
  WarmStarts warm_starts;
  SharedSteps::State shared_steps;
  LayerBasesState bases;
  bool operator==(const AveragerState&) const = default;
};

// What every rank of another world should start with, from the states of all ranks of the old one:
// the mean of the residuals and velocities, so that what was owed to the parameters still is, and
// the warm starts and bases, which are equal on all ranks; no residual is in its basis. Throws
// InvalidArgument for states of different models.
AveragerState merge_states(std::span<const AveragerState> of_all_ranks);

// What a rank goes on with in a world of `world` ranks, from its own state: residuals and
// velocities as they are, and nothing in a basis. Second residuals stay with who holds them; where
// the new world cuts elsewhere they are orphans, and paid back (see SecondResidual).
AveragerState for_world(AveragerState state, int world);

// Throws InvalidArgument unless everything in the state belongs to one of the layers, given with
// their numbers of elements, and has its size.
void check_fits(const AveragerState& state,
                const std::map<std::string, std::int64_t, std::less<>>& numel_of_layer);

// What must be the same on all ranks, for them to compare: the shared steps and the bases.
std::string describe_shared(const AveragerState& state);

// Adds what a layer is owed to its gradient, and stores what it is owed afterwards. Whatever the
// plan does with a layer from one step to the next, updates and residuals together hold every
// gradient: a layer that goes uncompressed gets its residual back.
//
// A step is transactional: correct() changes nothing that a later correct() would see, commit()
// does, once the averages proved finite. Not thread-safe.
class Residuals {
 public:
  using Extents = std::span<const SecondResidual::Extent>;

  // How a layer is averaged in a step.
  struct Way {
    bool compressed = false;
    // By a reduction that holds residuals in a basis (Reduction::uses_bases()), and knows itself
    // which second residuals it keeps.
    bool in_basis = false;
    // Ranges of which this rank keeps the second residual, in order.
    Extents owned = {};
  };

  // values (the gradient) plus what is returned become the corrected gradient: a layer's residual
  // is left to be added where the gradient is read, and the new one to be kept once the step has
  // proved finite; of a group of `world` ranks.
  ErrorFeedback::Carried correct(std::string_view name, std::span<float> values,
                                 const LayerSetting& setting, const Way& way, int world,
                                 std::int64_t step);

  // Whether correct() would change the gradient of a layer that goes uncompressed.
  bool carries(std::string_view name) const;

  // Of a layer with momentum correction: takes the new residual, or with `count` false forgets the
  // step.
  void commit_momentum(std::string_view name, std::span<const float> residual, bool count);

  // What the step has paid back is forgotten.
  void commit(std::string_view name, const LayerSetting& setting, const Way& way);

  // Begins a step that undo() can take back, as a whole and however far it has come: a layer is
  // copied before it changes for the first time. Costs memory and a copy of all that is held.
  void mark();
  // Everything is as it was at the last mark(); nothing where there was none.
  void undo();

  // Factor of a layer's second residual in this step: its decay, 0 where it is reset.
  static float second_decay(const LayerSetting& setting, std::int64_t step);

  ErrorFeedback feedback;
  MomentumCorrection momentum;
  SecondResidual second;
  WarmStarts warm_starts;
  SharedSteps shared_steps;
  LayerBases bases;

 private:
  // A layer as it was at a mark().
  struct Before {
    std::uint64_t mark = 0;
    bool has_residual = false;
    std::vector<float> residual;  // keeps its memory from step to step
    std::optional<MomentumCorrection::Layer> momentum;
    std::vector<SecondResidual::Range> second;
    std::optional<WarmStart> warm_start;
    std::optional<LayerBasis> basis;
  };

  void leave_basis(std::string_view name, int world);
  void remember(std::string_view name);

  std::uint64_t mark_ = 0;  // 0: none yet
  std::map<std::string, Before, std::less<>> before_;
  SharedSteps::State shared_before_;
};

}  // namespace thinwire::comm
