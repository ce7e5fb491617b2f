// A process group over ranks of another one, with connections of its own.
#pragma once

#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::comm {

// The ranks `ranks` of `group`, this one among them, numbered in this order, over the backends and
// with the timeout that it has; they find each other in `store`, which no other group uses.
// `bare`: over what the backends wrap, see WrapperBackend, rather than over the backends.
// Collective over them. `operation` is what errors say was done. Throws InvalidArgument where a
// backend of the group cannot, CommError when a rank does not come within the timeout.
c10::intrusive_ptr<c10d::ProcessGroup> connect_again(
    const c10::intrusive_ptr<c10d::ProcessGroup>& group,
    const c10::intrusive_ptr<c10d::Store>& store, const std::vector<int>& ranks,
    const std::string& operation, bool bare);

}  // namespace thinwire::comm
