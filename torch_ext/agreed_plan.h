// What every exchange of a model's tensors begins with: a name for its duplicate of the program's
// group, and a plan that all ranks have.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/compression.h"

namespace thinwire::detail {

// A name for the group's next duplicate for `purpose`. Ranks make their exchanges in the same
// order, as every collective, so counting them in the group's store gives all ranks the same
// number. Throws InvalidArgument for a group without a store.
std::string next_name(c10d::ProcessGroup& group, std::string_view purpose);

// comm::agree_on_text() of what `make` gives. A rank whose `make` throws says so to the others
// before it throws, or they would wait for it.
void agree_on_result(const c10d::ProcessGroup& group, const std::string& key, std::string_view what,
                     const std::function<std::string()>& make);

// The plan, once all ranks are known to have the same model and the same settings: those of
// `options` and, a line each, `more`. `what` names the settings in messages. Collective; throws
// InvalidArgument on every rank, naming the first difference. `group` may be the program's own.
comm::Plan agreed_plan(c10d::ProcessGroup& group, const std::string& name, std::string_view what,
                       const std::string& model, const std::vector<LayerInfo>& layers,
                       const CompressionOptions& options, const std::string& more = "");

}  // namespace thinwire::detail
