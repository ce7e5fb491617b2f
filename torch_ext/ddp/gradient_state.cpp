#include "thinwire/torch_ext/ddp/gradient_state.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

constexpr const char* kStepsName = "steps";
constexpr const char* kLeftOutName = "left_out";
constexpr const char* kSumsName = "sums";
constexpr const char* kMeansName = "means";
constexpr const char* kCurvesName = "curves";

template <typename T>
std::vector<T> values_of(const NamedTensors& tensors, const char* name, at::ScalarType type) {
  const at::Tensor& tensor = tensors.at(name);
  check(tensor.scalar_type() == type && tensor.dim() == 1, "'", kNextPlanPrefix, name, "' is ",
        tensor.scalar_type(), " ", tensor.sizes(), " in a saved state, expected ", type, " [n]");
  const at::Tensor values = tensor.contiguous();
  const auto* data = static_cast<const T*>(values.const_data_ptr());
  return {data, data + values.numel()};
}

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType type) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, type);
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr(), values.data(), tensor.nbytes());
  return tensor;
}

std::optional<PlanUnderWay> next_plan_of(const NamedTensors& tensors) {
  if (tensors.empty()) return std::nullopt;
  PlanUnderWay next;
  if (tensors.contains(kCurvesName)) {
    next.curves = values_of<double>(tensors, kCurvesName, at::kDouble);
    return next;
  }
  next.statistics.steps = integer_of(tensors, kStepsName);
  next.statistics.left_out = integer_of(tensors, kLeftOutName);
  next.statistics.holds_means = tensors.contains(kMeansName);
  const char* name = next.statistics.holds_means ? kMeansName : kSumsName;
  check(tensors.contains(name), "a saved state of gradients has no tensor '", kNextPlanPrefix, name,
        "'");
  next.statistics.values = values_of<std::uint16_t>(tensors, name, at::kBFloat16);
  return next;
}

NamedTensors tensors_of(const PlanUnderWay& next) {
  if (!next.curves.empty()) return {{kCurvesName, tensor_of(next.curves, at::kDouble)}};
  const GradientStatistics::Saved& saved = next.statistics;
  return {{kStepsName, integer_tensor(saved.steps)},
          {kLeftOutName, integer_tensor(saved.left_out)},
          {saved.holds_means ? kMeansName : kSumsName, tensor_of(saved.values, at::kBFloat16)}};
}

}  // namespace

SavedGradients taken_apart(const GradientState& state) {
  for (const auto& [name, tensor] : state)
    check(name == kWorldName || name == kStepsName || name == kPlanName ||
              name.starts_with(kNextPlanPrefix) || name.starts_with(kAveragerPrefix),
          "a saved state of gradients has no tensor '", name,
          "'; its names are world, steps, plan, next_plan/... and averager/...");
  SavedGradients saved;
  saved.world = integer_of(state, kWorldName);
  saved.steps = integer_of(state, kStepsName);
  check(saved.world > 0 && saved.steps >= 0, "a saved state of gradients is that of ", saved.world,
        " ranks after ", saved.steps, " steps; neither can be");
  if (state.contains(kPlanName)) saved.plan = text_of(state, kPlanName);
  saved.next_plan = next_plan_of(part_of(state, kNextPlanPrefix));
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
  return put_together(saved, comm::to_tensors(saved.averager));
}

GradientState put_together(const SavedGradients& saved, const NamedTensors& averager) {
  GradientState state;
  state.emplace(kWorldName, integer_tensor(saved.world));
  state.emplace(kStepsName, integer_tensor(saved.steps));
  if (!saved.plan.empty()) state.emplace(kPlanName, text_tensor(saved.plan));
  if (saved.next_plan) insert_part(state, kNextPlanPrefix, tensors_of(*saved.next_plan));
  insert_part(state, kAveragerPrefix, averager);
  return state;
}

}  // namespace thinwire::detail
