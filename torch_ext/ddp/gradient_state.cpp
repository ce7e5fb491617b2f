#include "thinwire/torch_ext/ddp/gradient_state.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <string_view>

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

constexpr std::string_view kWorld = "world", kSteps = "steps", kPlan = "plan",
                           kAverager = "averager/";

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::ranges::copy(text, bytes.mutable_data_ptr<std::uint8_t>());
  return bytes;
}

std::int64_t integer_of(const std::string& name, const at::Tensor& tensor) {
  check(tensor.defined() && tensor.numel() == 1 && tensor.scalar_type() == at::kLong, "'", name,
        "' of a saved state must be one int64");
  return tensor.item<std::int64_t>();
}

}  // namespace

namespace detail {

SavedGradients taken_apart(const GradientState& state) {
  SavedGradients saved;
  std::map<std::string, at::Tensor> averager;
  for (const auto& [name, tensor] : state) {
    if (name == kWorld) {
      saved.world = integer_of(name, tensor);
    } else if (name == kSteps) {
      saved.steps = integer_of(name, tensor);
    } else if (name == kPlan) {
      check(tensor.defined() && tensor.scalar_type() == at::kByte,
            "'plan' of a saved state must be bytes");
      const at::Tensor bytes = tensor.to(at::kCPU).contiguous();
      const auto* text = bytes.const_data_ptr<std::uint8_t>();
      saved.plan.assign(text, text + bytes.numel());
    } else {
      check(name.starts_with(kAverager), "a saved state of gradients has no tensor '", name,
            "'; its names are world, steps, plan and averager/...");
      averager.emplace(name.substr(kAverager.size()), tensor);
    }
  }
  check(saved.world > 0 && saved.steps >= 0,
        "a saved state of gradients needs 'world' and 'steps', the numbers of ranks and steps");
  saved.averager = comm::state_from_tensors(averager);
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
  state.emplace(kWorld, at::tensor({saved.world}, at::kLong));
  state.emplace(kSteps, at::tensor({saved.steps}, at::kLong));
  if (!saved.plan.empty()) state.emplace(kPlan, bytes_of(saved.plan));
  for (const auto& [name, tensor] : comm::to_tensors(saved.averager)) {
    state.emplace(concat(kAverager, name), tensor);
  }
  return state;
}

}  // namespace detail

GradientState merge_gradient_states(const std::vector<GradientState>& of_all_ranks,
                                    int world_size) {
  check(world_size > 0, "a job has at least one rank, got ", world_size);
  check(!of_all_ranks.empty(), "there are no states to merge");
  const auto hash_of = [](const detail::SavedGradients& saved) {
    return saved.plan.empty() ? 0 : lgreco::plan_hash(detail::plan_of(saved.plan));
  };
  detail::SavedGradients merged = detail::taken_apart(of_all_ranks.front());
  check(static_cast<std::size_t>(merged.world) == of_all_ranks.size(), "the states of all ",
        merged.world, " ranks are needed, got ", of_all_ranks.size());
  std::vector<comm::AveragerState> averagers = {merged.averager};
  for (std::size_t rank = 1; rank < of_all_ranks.size(); ++rank) {
    detail::SavedGradients saved = detail::taken_apart(of_all_ranks[rank]);
    check(saved.world == merged.world && saved.steps == merged.steps &&
              hash_of(saved) == hash_of(merged),
          "state ", rank, " (step ", saved.steps, " of ", saved.world,
          " ranks) is not of the same step and plan as state 0 (step ", merged.steps, " of ",
          merged.world, " ranks)");
    averagers.push_back(std::move(saved.averager));
  }
  merged.averager = comm::merge_states(averagers);
  merged.world = world_size;
  return detail::put_together(merged);
}

}  // namespace thinwire
