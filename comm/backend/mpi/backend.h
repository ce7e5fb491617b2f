// c10d::Backend over MPI, for CPU tensors. No build of LibTorch contains one.
//
// What has to do with MPI is a part of its own, libthinwire_mpi.so, which these functions load: see
// Note [Parts]. Where it cannot be loaded they throw InvalidArgument, saying what to install.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// Whether this process was started by an MPI launcher and the build has MPI. Starts nothing.
bool mpi_backend_usable();
// Throws InvalidArgument, saying what to do, where no group of `size` ranks can have this process
// as its rank `rank`: it is not under MPI, MPI has fewer processes, or just as many and numbers
// them in another way.
void check_mpi_backend(int rank, int size);
// This process's rank in MPI_COMM_WORLD. Starts MPI where the program has not.
int mpi_rank();

// A backend over a duplicate of MPI_COMM_WORLD, whose rank and size the arguments must equal.
// Collective. Throws InvalidArgument as check_mpi_backend does, CommError where MPI fails or not
// all ranks come within the timeout.
//
// It runs every collective that c10d declares for CPU tensors, on dense tensors of every type and
// layout; a tensor that is not contiguous goes through a copy. Reductions are made in rank order,
// whatever the size, so their bits depend on the inputs alone. Operations are asynchronous; several
// may be in flight. The calls may come from any thread, but in the same order on every rank.
// Tensors handed in must stay as they are until the Work has finished.
//
// An operation that fails - not finished within its timeout, a peer that sent another size or runs
// another operation - fails its Work with CommError naming the peer, and breaks the backend: all
// other operations, pending and to come, fail at once. MPI may write to the tensors of a failed
// operation later; the backend keeps them alive.
//
// `max_message_bytes`: longer messages travel in parts, 0 chooses. For tests; equal on every rank,
// at most 2^31 - 1.
c10::intrusive_ptr<c10d::Backend> make_mpi_backend(int rank, int size,
                                                   std::chrono::milliseconds timeout,
                                                   std::size_t max_message_bytes = 0);

// The same over some of the processes of MPI_COMM_WORLD, this one among them, given by their ranks
// there; their order is that of the backend's ranks. Collective over them.
c10::intrusive_ptr<c10d::Backend> make_mpi_backend(const std::vector<int>& ranks,
                                                   std::chrono::milliseconds timeout,
                                                   std::size_t max_message_bytes = 0);

// A backend over the ranks `ranks` of `backend`, this one among them, numbered in this order, with
// a communicator of its own. Collective over them. Throws InvalidArgument where `backend` is not
// ours. c10d's Backend::split() of our backend is this too.
c10::intrusive_ptr<c10d::Backend> reconnect_mpi_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const std::vector<int>& ranks);

// A function of the MPI that the backend is made on, or null where there is none. Starts nothing.
void* find_mpi_function(const char* name);

// See prepare_process().
void prepare_mpi_backend();

}  // namespace thinwire::comm
