// c10d::Backend over MPI, for CPU tensors. No build of LibTorch contains one.
#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// Whether this process was started by an MPI launcher and the build has MPI. Starts nothing.
bool mpi_backend_usable();
// Throws InvalidArgument, saying what to do, where make_mpi_backend(rank, size) cannot work.
void check_mpi_backend(int rank, int size);

// A backend over a duplicate of MPI_COMM_WORLD, whose rank and size the arguments must equal.
// Collective. Throws InvalidArgument as check_mpi_backend does, CommError where MPI fails.
c10::intrusive_ptr<c10d::Backend> make_mpi_backend(int rank, int size,
                                                   std::chrono::milliseconds timeout);

// A second backend over the same ranks with a communicator of its own. Collective.
// Throws InvalidArgument where `backend` is not ours.
c10::intrusive_ptr<c10d::Backend> duplicate_mpi_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend);

}  // namespace thinwire::comm
