// A process group for code that waits for its collectives itself, as c10d's Reducer does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// A group over the backends of `group`, for its broadcasts and all-reduces: Work::wait() behaves as
// comm::wait() does, so a rank that waits for one that has failed elsewhere learns of it and
// answers, rather than being taken for the dead one. The two groups are one: their collectives
// share an order, and failures are posted in the one store. Not collective. wait() waits as long as
// the backend does, whatever timeout it is given. Its backend's name is "custom".
c10::intrusive_ptr<c10d::ProcessGroup> watched(const c10::intrusive_ptr<c10d::ProcessGroup>& group);

// Over a group that watched() has made: gives every rank the values that `root` has in `tensors`,
// of equal number, shapes and dtypes on all ranks, in messages of 250 MiB at most. Collective.
// Throws as guard(), with `operation` and `sequence`.
void broadcast(const c10::intrusive_ptr<c10d::ProcessGroup>& watched_group,
               const std::vector<at::Tensor>& tensors, int root, const std::string& operation,
               std::uint64_t sequence);

}  // namespace thinwire::comm
