// Stands in for nccl_backend.cpp in a build without CUDA or NCCL.
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

[[noreturn]] void fail() {
  throw InvalidArgument(
      "this build of thinwire has no NCCL: it needs a CUDA build of LibTorch, the CUDA toolkit and "
      "nccl.h (Debian: libnccl-dev, Python: nvidia-nccl-cu13) when it is configured; "
      "the backends gloo and mpi work without");
}

}  // namespace

bool nccl_backend_usable() {
  return false;
}

void check_nccl_backend(int) {
  fail();
}

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>&, int,
                                                    int, std::chrono::milliseconds, int) {
  fail();
}

c10::intrusive_ptr<c10d::Backend> reconnect_nccl_backend(const c10::intrusive_ptr<c10d::Backend>&,
                                                         const c10::intrusive_ptr<c10d::Store>&,
                                                         const std::vector<int>&) {
  fail();
}

}  // namespace thinwire::comm
