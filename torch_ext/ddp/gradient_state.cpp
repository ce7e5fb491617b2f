#include "thinwire/torch_ext/ddp/gradient_state.h"

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

constexpr const char* kStepsName = "steps";

}  // namespace

SavedGradients taken_apart(const GradientState& state) {
  for (const auto& [name, tensor] : state)
    check(name == kWorldName || name == kStepsName || name == kPlanName ||
              name.starts_with(kAveragerPrefix),
          "a saved state of gradients has no tensor '", name,
          "'; its names are world, steps, plan and averager/...");
  SavedGradients saved;
  saved.world = integer_of(state, kWorldName);
  saved.steps = integer_of(state, kStepsName);
  check(saved.world > 0 && saved.steps >= 0, "a saved state of gradients is that of ", saved.world,
        " ranks after ", saved.steps, " steps; neither can be");
  if (state.contains(kPlanName)) saved.plan = text_of(state, kPlanName);
  saved.averager = comm::state_from_tensors(part_of(state, kAveragerPrefix));
  return saved;
}

lgreco::SolvedPlan plan_of(const std::string& text) {
  try {
    return lgreco::parse_plan(text, "the saved plan");
  } catch (const FileError& error) {
    throw InvalidArgument(error.what());
  }
}

GradientState put_together(const SavedGradients& saved) {
  GradientState state;
  state.emplace(kWorldName, integer_tensor(saved.world));
  state.emplace(kStepsName, integer_tensor(saved.steps));
  if (!saved.plan.empty()) state.emplace(kPlanName, text_tensor(saved.plan));
  insert_part(state, kAveragerPrefix, comm::to_tensors(saved.averager));
  return state;
}

}  // namespace thinwire::detail
