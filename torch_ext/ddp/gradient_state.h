// Checkpoints of a GradientExchange.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/residuals.h"
#include "thinwire/compressors/allocation/plan_file.h"

namespace thinwire {

// What one rank carries from one step to the next besides parameters, by name: "world", the number
// of ranks; "steps", the number of finished ones; "plan", the text of the last plan of lgreco(...),
// as bytes; "averager/...", what compression has lost and where low rank starts
// (comm/average/state_tensors.h).
using GradientState = std::map<std::string, at::Tensor>;

// What every rank of a world of another size should start with, from the states of all ranks of the
// old one; see comm::merge_states(). Throws InvalidArgument for states of different steps or
// models, or if there are not as many as there were ranks.
GradientState merge_gradient_states(const std::vector<GradientState>& of_all_ranks, int world_size);

namespace detail {

// A state, taken apart.
struct SavedGradients {
  std::int64_t world = 0;
  std::int64_t steps = -1;
  std::string plan;  // empty without lgreco(...), and before its first plan
  comm::AveragerState averager;
};

// Throws InvalidArgument that names the tensor at fault.
SavedGradients taken_apart(const GradientState& state);
GradientState put_together(const SavedGradients& saved);
// The plan of its text. Throws InvalidArgument.
lgreco::SolvedPlan plan_of(const std::string& text);

}  // namespace detail
}  // namespace thinwire
