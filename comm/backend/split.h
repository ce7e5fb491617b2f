// Process groups of some of the ranks of another one.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// The group of the ranks of `group` that pass the same `color`, numbered by `key`, and by their
// rank in `group` where that is equal; null for a negative color. As MPI_Comm_split. Over the same
// backend with the same timeout, but connections, store prefix and failures of its own: a failure
// of the new group is not one of `group`, whose other ranks have nothing to do with it. Works on
// groups of make_process_group(), launch::init(), duplicate() and split().
//
// Collective over `group`: every rank calls it, equally often. Throws InvalidArgument for a group
// without a store, CommError naming a rank that does not come within the timeout.
c10::intrusive_ptr<c10d::ProcessGroup> split(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                             int color, int key = 0);

}  // namespace thinwire::comm
