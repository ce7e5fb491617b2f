// Names for what all ranks of a group make together.
#pragma once

#include <string>
#include <string_view>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// A name that nothing else which the group makes for `purpose` has: of its next duplicate, or of an
// agreement. Ranks make the same things in the same order, as collectives, so each counts its own:
// one that is refused at once may make its next before another has come to this one. Throws
// InvalidArgument for a group without a store.
std::string next_name(c10d::ProcessGroup& group, std::string_view purpose);

}  // namespace thinwire::comm
