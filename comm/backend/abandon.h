// Ending a process group while its ranks may still wait for each other in it.
#pragma once

#include <chrono>
#include <memory>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// This rank takes part in nothing more of the group, whatever is under way: connections are closed
// (Gloo) or the communicator is aborted (NCCL), so that no rank waits for this one, and nothing
// that a rank still sends in it can reach anybody. Not collective; never throws. Of a group over
// MPI nothing is ended: MPI has no such thing.
void abandon(c10d::ProcessGroup& group) noexcept;

// Destroys a group that was abandoned, or what holds one, on a thread of its own: a group of Gloo
// waits until its operations have ended, perhaps by their timeout.
void retire(std::shared_ptr<void> thing);

// The timeout of the collectives to come of the group, and of the groups to be made from it.
void set_timeout(c10d::ProcessGroup& group, std::chrono::milliseconds timeout);

}  // namespace thinwire::comm
