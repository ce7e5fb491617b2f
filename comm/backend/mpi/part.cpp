// The backend's functions in the library, which loads the part that has MPI.
#include <cstdlib>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/mpi/functions.h"
#include "thinwire/comm/backend/part/part.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

#if THINWIRE_MPI_INSIDE
const void* mpi_inside() {
  return thinwire_mpi_functions();
}
#else
constexpr auto mpi_inside = nullptr;
#endif

Part& mpi_part() {
  static Part part({
      .title = "MPI",
      .file = "libthinwire_mpi.so",
      .function = "thinwire_mpi_functions",
      .build = "install an MPI library with its headers (Debian: libopenmpi-dev) and build "
               "thinwire again; the backend gloo works without",
      .install = "install the MPI library that it was built with (Debian: openmpi-bin); the "
                 "backend gloo works without",
      .inside = mpi_inside,
  });
  return part;
}

const MpiFunctions& mpi_functions() {
  return *static_cast<const MpiFunctions*>(mpi_part().table());
}

}  // namespace

bool mpi_backend_usable() {
  try {
    return mpi_functions().usable();
  } catch (const InvalidArgument&) {
    return false;
  }
}

void check_mpi_backend(int rank, int size) {
  mpi_functions().check(rank, size);
}

int mpi_rank() {
  return mpi_functions().rank();
}

BackendPtr make_mpi_backend(int rank, int size, std::chrono::milliseconds timeout,
                            std::size_t max_message_bytes) {
  return mpi_functions().make_whole(rank, size, timeout, max_message_bytes);
}

BackendPtr make_mpi_backend(const std::vector<int>& ranks, std::chrono::milliseconds timeout,
                            std::size_t max_message_bytes) {
  return mpi_functions().make(ranks, timeout, max_message_bytes);
}

BackendPtr reconnect_mpi_backend(const BackendPtr& backend, const std::vector<int>& ranks) {
  return mpi_functions().reconnect(backend, ranks);
}

void* find_mpi_function(const char* name) {
  return mpi_part().find(name);
}

void prepare_mpi_backend() {
  // Whoever sets the variable keeps the setting.
  static const int done =
      setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", /*overwrite=*/0);
  static_cast<void>(done);
}

}  // namespace thinwire::comm
