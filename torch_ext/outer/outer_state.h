// What an OuterOptimizer carries from one outer step to the next.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "thinwire/comm/average/residuals.h"

namespace thinwire {

// Value type. What the averager carries differs from rank to rank, everything else is the same on
// all.
struct OuterState {
  std::string layout;  // the model and its parts, a line each
  int world_size = 0;
  std::int64_t inner_steps = 0, outer_steps = 0, skipped_steps = 0;
  std::vector<float> synchronised, momentum;  // one entry for every parameter's element
  comm::AveragerState averager;               // residuals, velocities, warm starts, by part
};

// One rank's state as a safetensors file, by temporary file and rename; overwrites. Throws
// FileError where the disk refuses.
void save_outer_state(const OuterState& state, const std::filesystem::path& path);
// Throws FileError for what is not such a file.
OuterState load_outer_state(const std::filesystem::path& path);

// The states of all ranks of a job, for a job of `world_size` ranks: every rank starts with the
// mean of the residuals, so that what the old ranks still owed is neither lost nor counted twice
// (see comm::merge_states()).
// Throws InvalidArgument where they are not those of one step, one for each rank.
OuterState merge_states(const std::vector<OuterState>& states, int world_size);

}  // namespace thinwire
