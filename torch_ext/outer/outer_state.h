// What an OuterOptimizer carries from one outer step to the next.
#pragma once

#include <cstdint>
#include <string>

#include "thinwire/comm/average/residuals.h"
#include "thinwire/comm/state/merge.h"

namespace thinwire {

// By name: "world", the number of ranks; "inner_steps", "outer_steps" and "skipped_steps";
// "layout", the model and its parts, a line each, as bytes; "synchronised" and "momentum", float32,
// one entry for every parameter's element; "averager/...", residuals, velocities and warm starts by
// part (comm/average/state_tensors.h), which differ from rank to rank, everything else is the same
// on all. save_tensors() and load_tensors() keep it in a file, merge_states() makes those of all
// ranks fit another world.
using OuterState = NamedTensors;

namespace detail {

// A state, taken apart.
struct SavedOuter {
  std::string layout;
  std::int64_t world = 0;
  std::int64_t inner_steps = 0, outer_steps = 0, skipped_steps = 0;
  at::Tensor synchronised, momentum;  // [numel] each, contiguous float32 on the CPU
  comm::AveragerState averager;
};

// Throws InvalidArgument that names the tensor at fault.
SavedOuter outer_of(const OuterState& state);
OuterState state_of(const SavedOuter& saved);
// The same, sharing the memory of the tensors of `saved`, with an averager's state as the tensors
// of it that there are already; saved.averager is passed over.
OuterState state_of(const SavedOuter& saved, const NamedTensors& averager);

}  // namespace detail
}  // namespace thinwire
