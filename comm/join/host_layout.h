// Which ranks share a host.
#pragma once

#include <string_view>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// The host of every rank, numbered in the order in which they first appear. A host is known by its
// name, so those of one job must have different ones. The ranks tell each other through the group's
// store; `key` must be new for every call on a group and equal on all ranks. Collective; throws
// CommError naming a rank that does not come within the store's timeout.
std::vector<int> hosts_of_ranks(const c10d::ProcessGroup& group, std::string_view key);

// The same for a given name of this rank's host.
std::vector<int> hosts_of_ranks(const c10d::ProcessGroup& group, std::string_view key,
                                std::string_view host);

}  // namespace thinwire::comm
