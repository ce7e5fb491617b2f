// Tensors in GPU memory over a backend that takes tensors in host memory alone.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// A backend for CUDA tensors over `inner`, MPI's, which nobody else uses. Messages are copied to
// pinned memory on the current stream when a collective is started; a thread of the backend's
// starts them on `inner`, in order, as the copies arrive, while the device works on; wait() returns
// when the answer is there, and queues its copy to the device on the stream that is current then.
// Takes broadcast, allreduce, _allgather_base, alltoall_base and barrier of contiguous tensors;
// c10d refuses the rest by name. Options and timeout are those of `inner`.
c10::intrusive_ptr<c10d::Backend> make_staged_backend(c10::intrusive_ptr<c10d::Backend> inner);

// Whether make_staged_backend() has made it.
bool is_staged(const c10d::Backend& backend);

// Whether this process has GPUs whose tensors could be staged.
bool has_gpus();

}  // namespace thinwire::comm
