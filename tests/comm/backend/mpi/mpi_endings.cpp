// A rank of an MPI job that ends in the way its argument names; see test_mpi_endings.py.
#include <dlfcn.h>
#include <unistd.h>
#include <csignal>
#include <iostream>
#include <string>

#include <ATen/ATen.h>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/mpi/runtime.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace {

using namespace thinwire;
using Tensors = std::vector<at::Tensor>;

void run(const std::string& ending) {
  if (ending == "serialized") {
    // By its name, since MPI's header is for the backend alone; 2 is MPI_THREAD_SERIALIZED.
    using Init = int (*)(int*, char***, int, int*);
    int provided = 0;
    reinterpret_cast<Init>(dlsym(RTLD_DEFAULT, "MPI_Init_thread"))(nullptr, nullptr, 2, &provided);
  }
  const auto world = comm::mpi::world();
  log::set_identity(world.rank, "host");
  const bool last = world.rank == world.size - 1;
  const auto timeout = std::chrono::milliseconds(ending == "killed" ? 60'000 : 2'000);
  const auto mpi = comm::make_mpi_backend(world.rank, world.size, timeout);
  Tensors tensors = {at::ones({1'000'000})};
  mpi->allreduce(tensors)->wait();
  if (ending == "pending") {
    // Nobody sends this, and nobody waits for it.
    mpi->recv(tensors, (world.rank + 1) % world.size, 1);
    Tensors sent = {at::ones({1'000'000})};
    mpi->send(sent, (world.rank + 1) % world.size, 2);
    std::cout << "left\n" << std::flush;
    return;
  }
  if (ending == "exception" && last) throw InvalidArgument("one rank gives up");
  if (ending == "killed" && last) raise(SIGKILL);
  if (ending == "stopped" && last) raise(SIGSTOP);
  if (ending == "absent" && last) {
    sleep(4);
    return;
  }
  mpi->allreduce(tensors)->wait();
  std::cout << "survived\n" << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc > 1 ? argv[1] : "");
    return 0;
  } catch (const std::exception& error) {
    thinwire::log::error(error.what());
    return 1;
  }
}
