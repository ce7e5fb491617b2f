// Stands in for mpi_backend.cpp in a build without MPI.
#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

[[noreturn]] void fail() {
  throw InvalidArgument(
      "this build of thinwire has no MPI: install an MPI library (Debian: libopenmpi-dev) and "
      "configure again with -DTHINWIRE_WITH_MPI=ON; the backend gloo works without");
}

}  // namespace

bool mpi_backend_usable() {
  return false;
}

void check_mpi_backend(int, int) {
  fail();
}

c10::intrusive_ptr<c10d::Backend> make_mpi_backend(int, int, std::chrono::milliseconds,
                                                   std::size_t) {
  fail();
}

c10::intrusive_ptr<c10d::Backend> make_mpi_backend(const std::vector<int>&,
                                                   std::chrono::milliseconds, std::size_t) {
  fail();
}

c10::intrusive_ptr<c10d::Backend> reconnect_mpi_backend(const c10::intrusive_ptr<c10d::Backend>&,
                                                        const std::vector<int>&) {
  fail();
}

int mpi_rank() {
  fail();
}

void prepare_mpi_backend() {}

}  // namespace thinwire::comm
