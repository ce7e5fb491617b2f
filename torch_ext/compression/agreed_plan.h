// What every exchange of a model's tensors begins with: a plan that all ranks have.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::detail {

// The plan, once all ranks are known to have the same model and the same settings: those of
// `options` and, a line each, what `more` makes of the plan; what it throws is this rank's mistake,
// told to all. `what` names the settings in messages. Collective; throws InvalidArgument on every
// rank, naming the first difference. `group` may be the program's own.
CompressionPlan agreed_plan(c10d::ProcessGroup& group, const std::string& name,
                            std::string_view what, const std::string& model,
                            const std::vector<LayerInfo>& layers, const CompressionOptions& options,
                            const std::function<std::string(const CompressionPlan&)>& more = {});

}  // namespace thinwire::detail
