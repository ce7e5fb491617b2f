// What can be averaged in GPU memory, where not every codec has kernels.
#pragma once

#include <optional>
#include <string_view>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/reduction_table.h"

namespace thinwire::comm {

// Each throws InvalidArgument that says what has no kernels, and what has: of one layer, which the
// message names; of all layers of a plan, and the strategy that a program asks for by name, if any.
void check_device_setting(std::string_view layer, const LayerSetting& setting);
void check_device_plan(const Plan& plan, const std::optional<Strategy>& strategy);

// The strategy of a codec that has kernels: the one that is asked for, or else the usual one.
// Throws InvalidArgument where another is asked for than there is.
Strategy device_strategy(const Codec& codec, const std::optional<Strategy>& asked);

// Throws InvalidArgument unless the group takes tensors of the device's kind, and small ones in
// host memory, by which the ranks agree on what they do with the others.
void check_device_group(c10d::ProcessGroup& group, at::Device device);

}  // namespace thinwire::comm
