// Rank and size as the launcher tells them. Precedence: torchrun's RANK, then the launchers of MPI
// and Flux, then SLURM_*, then a job of one rank.
//
//            rank                  size                  local rank, size       store
// torchrun   RANK                  WORLD_SIZE            LOCAL_RANK,            MASTER_ADDR,
//                                                        LOCAL_WORLD_SIZE       MASTER_PORT
// mpirun     OMPI_COMM_WORLD_RANK  OMPI_COMM_WORLD_SIZE  OMPI_COMM_WORLD_LOCAL_ agreed by MPI, or
//                                                        RANK, ..._LOCAL_SIZE   MASTER_* if both
//                                                        set
// srun       SLURM_PROCID          SLURM_STEP_NUM_TASKS, SLURM_LOCALID,         first host of
//                                  else SLURM_NTASKS     SLURM_STEP_TASKS_PER_ SLURM_STEP_NODELIST,
//                                                        NODE                   port of the job's
//                                                                               number; or MASTER_*
// mpiexec    PMI_RANK              PMI_SIZE              MPI_LOCALRANKID,       see below
//                                                        MPI_LOCALNRANKS
// MVAPICH    MV2_COMM_WORLD_RANK   MV2_COMM_WORLD_SIZE   ..._LOCAL_RANK, _SIZE  see below
// jsrun      JSM_NAMESPACE_RANK    JSM_NAMESPACE_SIZE    ..._LOCAL_RANK, _SIZE  see below
// flux       FLUX_TASK_RANK        FLUX_JOB_SIZE         FLUX_TASK_LOCAL_ID     MASTER_*
//
// The store of the three is agreed by MPI where this build has that launcher's MPI, else MASTER_*.
//
// mpiexec is the launcher of MPICH, Intel MPI and Cray. Where srun sets PMI_* too, it is srun.
// Variables that tell of a job and not of its size (PALS_RANKID, PMIX_RANK) are refused: a program
// that went on would train alone, once for every rank.
//
// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set by hand work like torchrun's. THINWIRE_STORE,
// HOST:PORT, stands before MASTER_* under every launcher: nobody serves a store then, see `thinwire
// store`.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace thinwire::launch {

enum class Launcher { kTorchrun, kMpirun, kMpiexec, kMvapich, kJsrun, kFlux, kSlurm, kNone };
std::string_view name_of(Launcher launcher);
// Whether programs that it starts may use MPI to find each other.
bool starts_mpi(Launcher launcher);

struct RankEnv {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;
  // -1 and 0 where the launcher does not tell; launch::init() then counts the ranks of each host.
  int local_rank = 0;
  int local_size = 1;
  // Where the store is; under mpirun empty and 0 until rank 0 has told the others.
  std::string master_addr;
  int master_port = 0;
  // torchrun's agent or `thinwire store` serves the store: every rank connects as a client.
  bool agent_store = false;
  // TORCHELASTIC_RUN_ID, part of the store's prefix. What torchrun tells beside it of a restart is
  // not the same on every rank; see Note [Rounds].
  std::string run_id;
};

// Throws InvalidArgument, naming the variables and their values, when they are missing, malformed
// or contradict each other (RANK >= WORLD_SIZE, RANK without WORLD_SIZE, ...). Empty counts as
// unset.
using EnvLookup = std::function<std::optional<std::string>(const std::string& name)>;
RankEnv read_rank_env(const EnvLookup& lookup);
// From this process's environment.
RankEnv read_rank_env();

// Takes the address of a store that none of the ranks serves from "HOST:PORT"; an IPv6 address
// stands in brackets or not. Throws InvalidArgument for anything else.
void use_store(RankEnv& env, const std::string& address);

// The port at which rank 0 of a Slurm step serves the store: 15000 + (31 job + step) mod 15000,
// below the ports that Linux hands out by itself. Steps of one job, and jobs next to each other,
// get different ports.
int slurm_port(long long job, long long step);

}  // namespace thinwire::launch
