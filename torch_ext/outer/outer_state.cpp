#include "thinwire/torch_ext/outer/outer_state.h"

#include <ATen/Functions.h>

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

constexpr const char* kLayoutName = "layout";
constexpr const char* kSynchronisedName = "synchronised";
constexpr const char* kMomentumName = "momentum";
constexpr const char* kCounterNames[] = {"inner_steps", "outer_steps", "skipped_steps"};

bool is_outer_name(const std::string& name) {
  for (const char* known : {kWorldName, kLayoutName, kSynchronisedName, kMomentumName,
                            kCounterNames[0], kCounterNames[1], kCounterNames[2]})
    if (name == known) return true;
  return name.starts_with(kAveragerPrefix);
}

std::int64_t counter_of(const OuterState& state, const char* name) {
  const std::int64_t value = integer_of(state, name);
  check(value >= 0, "'", name, "' of a saved state must not be negative, got ", value);
  return value;
}

at::Tensor floats_of(const OuterState& state, const char* name) {
  const auto found = state.find(name);
  check(found != state.end() && found->second.defined() &&
            found->second.scalar_type() == at::kFloat && found->second.dim() == 1,
        "the saved state of an outer optimizer needs '", name, "', float32 of one dimension");
  return found->second.detach().cpu().contiguous();
}

}  // namespace

SavedOuter outer_of(const OuterState& state) {
  for (const auto& [name, tensor] : state)
    check(is_outer_name(name), "the saved state of an outer optimizer has no tensor '", name, "'");
  SavedOuter saved;
  saved.layout = text_of(state, kLayoutName);
  saved.world = counter_of(state, kWorldName);
  saved.inner_steps = counter_of(state, kCounterNames[0]);
  saved.outer_steps = counter_of(state, kCounterNames[1]);
  saved.skipped_steps = counter_of(state, kCounterNames[2]);
  saved.synchronised = floats_of(state, kSynchronisedName);
  saved.momentum = floats_of(state, kMomentumName);
  saved.averager = comm::state_from_tensors(part_of(state, kAveragerPrefix));
  return saved;
}

OuterState state_of(const SavedOuter& saved) {
  OuterState state = state_of(saved, comm::to_tensors(saved.averager));
  for (const char* name : {kSynchronisedName, kMomentumName}) state[name] = state[name].clone();
  return state;
}

OuterState state_of(const SavedOuter& saved, const NamedTensors& averager) {
  OuterState state;
  state.emplace(kLayoutName, text_tensor(saved.layout));
  state.emplace(kWorldName, integer_tensor(saved.world));
  state.emplace(kCounterNames[0], integer_tensor(saved.inner_steps));
  state.emplace(kCounterNames[1], integer_tensor(saved.outer_steps));
  state.emplace(kCounterNames[2], integer_tensor(saved.skipped_steps));
  state.emplace(kSynchronisedName, saved.synchronised);
  state.emplace(kMomentumName, saved.momentum);
  insert_part(state, kAveragerPrefix, averager);
  return state;
}

}  // namespace thinwire::detail
