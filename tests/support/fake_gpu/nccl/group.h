// Operations of NCCL as sends and receives, and the groups in which they run.
#pragma once

#include <nccl.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "thinwire/tests/support/fake_gpu/nccl/pipes.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

// The handle of NCCL's interface.
struct ncclComm {
  thinwire::fake_gpu::SharedPipes* shared = nullptr;
  int rank = 0, size = 1;
  std::atomic<bool> aborted = false;
};

namespace thinwire::fake_gpu {

// Where `at` is memory that tasks may touch: a shadow or the host's.
struct Transfer {
  int peer = 0;
  std::byte* at = nullptr;
  std::size_t bytes = 0;
};

// One call, which runs as a part of a task of its stream: begin, then all transfers side by side,
// then end.
struct Operation {
  std::string name;
  ncclComm* comm = nullptr;
  Stream* stream = nullptr;
  std::vector<Access> accesses = {};
  std::vector<Transfer> sends = {}, receives = {};
  std::function<void()> begin = {}, end = {};
};

// Queues it, at once or with the group that is open in this thread. Nothing waits on the host; a
// task waits for its peers for ever, until its communicator is aborted, as NCCL's kernels do.
ncclResult_t add_operation(Operation operation);

}  // namespace thinwire::fake_gpu
