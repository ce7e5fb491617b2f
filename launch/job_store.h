// How the ranks of a job find each other: the key-value store that every launcher leads to.
#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "thinwire/launch/rank_env.h"

namespace thinwire::launch {

// Connects this rank to the job's store.
//
//   torchrun              its agent serves, every rank is a client
//   RANK etc. by hand     rank 0 serves at MASTER_ADDR:MASTER_PORT
//   mpirun                rank 0 serves at a free port and tells the others by an MPI broadcast;
//                         with MASTER_ADDR and MASTER_PORT set, there; in a build without MPI, on
//                         one host, at a port derived from the job's number
//   mpiexec, jsrun, ...   as under mpirun where this build has the launcher's MPI; else, and under
//                         flux, at MASTER_ADDR:MASTER_PORT, which must be set
//   srun                  rank 0 serves on the first host of the step, see slurm_port()
//   none, or one rank     a store inside this process
//
// Throws InvalidArgument where an address is missing; CommError, naming address and port, when the
// port is taken or nobody answers there within the timeout. Collective under mpirun.
c10::intrusive_ptr<c10d::Store> connect_store(const RankEnv& env,
                                              std::chrono::milliseconds timeout);

}  // namespace thinwire::launch
