// What surrounds an MPI that is not started yet, and what makes communicators once it is.
#pragma once

#include <vector>

namespace thinwire::comm::mpi {

// Whether a launcher of this build's MPI started this process, or the program has initialised MPI.
bool is_launched();

// The handle (as MPI_Comm_c2f gives it) of a communicator over the ranks `ranks` of the one with
// the handle `parent`, this one among them, in this order. Blocks until all of them have come, in
// MPI: not for the progress thread. Throws CommError.
int create_group(int parent, const std::vector<int>& ranks);

}  // namespace thinwire::comm::mpi
