// What can be averaged in GPU memory, where not every codec has kernels.
#pragma once

#include <optional>
#include <string_view>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/reduction_table.h"

namespace thinwire::comm {

// Each throws InvalidArgument that says what has no kernels, and what has: of one layer, which the
// message names; of the strategy that a program asks for by name, if any; of all layers of a plan.
void check_device_setting(std::string_view layer, const LayerSetting& setting);
void check_device_strategy(const std::optional<Strategy>& strategy);
void check_device_plan(const Plan& plan, const std::optional<Strategy>& strategy);

}  // namespace thinwire::comm
