// A process group for code that waits for its collectives itself, as c10d's Reducer does.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// A group over the backends of `group`, for its broadcasts and all-reduces: Work::wait() behaves as
// comm::wait() does, so a rank that waits for one that has failed elsewhere learns of it and
// answers, rather than being taken for the dead one. The two groups are one: their collectives
// share an order, and failures are posted in the one store. Not collective. wait() waits as long as
// the backend does, whatever timeout it is given. Its backend's name is "custom".
c10::intrusive_ptr<c10d::ProcessGroup> watched(const c10::intrusive_ptr<c10d::ProcessGroup>& group);

}  // namespace thinwire::comm
