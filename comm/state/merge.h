// States of all ranks of a job, for a job of another size.
#pragma once

#include <string>
#include <vector>

#include "thinwire/comm/state/named_tensors.h"

namespace thinwire {

// Where a state keeps what is merged: the number of ranks, the text of a plan of lgreco(...), and
// what a BucketAverager carries (comm/average/state_tensors.h).
inline constexpr const char* kWorldName = "world";
inline constexpr const char* kPlanName = "plan";
inline constexpr const char* kAveragerPrefix = "averager/";
// What is under way of the next plan, whose parts belong to the ranks of one world.
inline constexpr const char* kNextPlanPrefix = "next_plan/";

// What every rank of a job of `world_size` ranks starts with, from the states of all ranks of the
// old one, in order of the ranks:
//   world           is `world_size`
//   averager/...    the mean of the residuals, so that what the old ranks still owed is neither
//                   lost nor counted twice (see comm::merge_states())
//   plan            must be the same on all ranks, up to the rounding of its figures
//   next_plan/...   is left out: the next plan begins anew
//   others          must have the same bits in all states that have them; what only some have, a
//                   MoELayer's experts for instance, is kept
// Throws InvalidArgument, naming state and tensor, where that is not so, or where there are not as
// many states as there were ranks.
NamedTensors merge_states(const std::vector<NamedTensors>& of_all_ranks, int world_size);

}  // namespace thinwire
