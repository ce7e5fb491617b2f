// Checkpoints of a GradientExchange.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "thinwire/comm/average/residuals.h"
#include "thinwire/comm/state/merge.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/torch_ext/adaptive/adaptive_plan.h"

namespace thinwire {

// What one rank carries from one step to the next besides parameters, by name: "world", the number
// of ranks; "steps", the number of finished ones; "plan", the text of the last plan of lgreco(...),
// as bytes; "next_plan/...", what is under way of the one after it: "steps" and "left_out", "sums"
// or "means" in bfloat16, or "curves" in float64; "averager/...", what compression has lost and
// where low rank starts (comm/average/state_tensors.h). merge_states() makes those of all ranks fit
// another world, where the next plan begins anew.
using GradientState = NamedTensors;

namespace detail {

// A state, taken apart.
struct SavedGradients {
  std::int64_t world = 0;
  std::int64_t steps = -1;
  std::string plan;  // empty without lgreco(...), and before its first plan
  std::optional<PlanUnderWay> next_plan;
  comm::AveragerState averager;
};

// Throws InvalidArgument that names the tensor at fault.
SavedGradients taken_apart(const GradientState& state);
GradientState put_together(const SavedGradients& saved);
// The same with an averager's state as the tensors of it that there are already; saved.averager is
// passed over.
GradientState put_together(const SavedGradients& saved, const NamedTensors& averager);
// The plan of its text. Throws InvalidArgument.
lgreco::SolvedPlan plan_of(const std::string& text);

}  // namespace detail
}  // namespace thinwire
