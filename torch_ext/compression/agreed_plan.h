// What every exchange of a model's tensors begins with: a name for its duplicate of the program's
// group, and a plan that all ranks have.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::detail {

// A name for the group's next duplicate for `purpose`. Ranks make their exchanges in the same
// order, as every collective, so counting them in the group's store gives all ranks the same
// number. Throws InvalidArgument for a group without a store.
std::string next_name(c10d::ProcessGroup& group, std::string_view purpose);

// The plan, once all ranks are known to have the same model and the same settings: those of
// `options` and, a line each, `more`. `what` names the settings in messages. Collective; throws
// InvalidArgument on every rank, naming the first difference. `group` may be the program's own.
comm::Plan agreed_plan(c10d::ProcessGroup& group, const std::string& name, std::string_view what,
                       const std::string& model, const std::vector<LayerInfo>& layers,
                       const CompressionOptions& options, const std::string& more = "");

}  // namespace thinwire::detail
