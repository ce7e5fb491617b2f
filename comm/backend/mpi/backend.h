// c10d::Backend over MPI, for CPU tensors. No build of LibTorch contains one.
#pragma once

#include <chrono>
#include <cstddef>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace thinwire::comm {

// Whether this process was started by an MPI launcher and the build has MPI. Starts nothing.
bool mpi_backend_usable();
// Throws InvalidArgument, saying what to do, where make_mpi_backend(rank, size) cannot work.
void check_mpi_backend(int rank, int size);

// A backend over a duplicate of MPI_COMM_WORLD, whose rank and size the arguments must equal.
// Collective. Throws InvalidArgument as check_mpi_backend does, CommError where MPI fails.
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

// A second backend over the same ranks with a communicator of its own. Collective.
// Throws InvalidArgument where `backend` is not ours.
c10::intrusive_ptr<c10d::Backend> duplicate_mpi_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend);

}  // namespace thinwire::comm
