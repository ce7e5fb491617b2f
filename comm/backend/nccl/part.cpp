// The backend's functions in the library, which loads the part that has NCCL.
#include "thinwire/comm/backend/part/part.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/nccl/functions.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

#if THINWIRE_NCCL_INSIDE
const void* nccl_inside() {
  return thinwire_nccl_functions();
}
#else
constexpr auto nccl_inside = nullptr;
#endif

Part& nccl_part() {
  static Part part({
      .title = "NCCL",
      .file = "libthinwire_nccl.so",
      .function = "thinwire_nccl_functions",
      .build =
          "it needs a CUDA build of LibTorch, the CUDA toolkit and nccl.h (Debian: libnccl-dev, "
          "Python: nvidia-nccl-cu13) when it is configured; the backends gloo and mpi work without",
      .install = "it needs a CUDA build of LibTorch; the backends gloo and mpi work without",
      .inside = nccl_inside,
  });
  return part;
}

const NcclFunctions& nccl_functions() {
  return *static_cast<const NcclFunctions*>(nccl_part().table());
}

}  // namespace

bool nccl_backend_usable() {
  try {
    return nccl_functions().usable();
  } catch (const InvalidArgument&) {
    return false;
  }
}

void check_nccl_backend(int cuda_device) {
  nccl_functions().check(cuda_device);
}

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size,
                                                    std::chrono::milliseconds timeout,
                                                    int cuda_device) {
  return nccl_functions().make(store, rank, size, timeout, cuda_device);
}

c10::intrusive_ptr<c10d::Backend> reconnect_nccl_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const c10::intrusive_ptr<c10d::Store>& store,
    const std::vector<int>& ranks) {
  return nccl_functions().reconnect(backend, store, ranks);
}

void* find_nccl_function(const char* name) {
  return nccl_part().find(name);
}

}  // namespace thinwire::comm
