#include "thinwire/comm/backend/mpi/start.h"

// Without these mpi.h brings MPI's withdrawn C++ classes along.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <array>
#include <cstdint>
#include <cstdlib>

#include "thinwire/comm/backend/mpi/transfer.h"

namespace thinwire::comm::mpi {

bool is_launched() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return true;
#ifdef OPEN_MPI
  // Its own launcher, and any that speaks PMIx (srun --mpi=pmix). Under that of another MPI each
  // process would start as the only one.
  constexpr std::array kNames = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK"};
#else
  constexpr std::array kNames = {"PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK"};
#endif
  for (const char* name : kNames)
    if (std::getenv(name) != nullptr) return true;
  return false;
}

int create_group(int parent, const std::vector<int>& ranks) {
  const MPI_Comm comm = MPI_Comm_f2c(parent);
  // Ranks that make several groups at a time must not meet those of another one.
  std::uint32_t tag = 0;
  for (const int rank : ranks) tag = 31 * tag + static_cast<std::uint32_t>(rank) + 1;
  MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
  check_mpi(MPI_Comm_group(comm, &all), "MPI_Comm_group");
  check_mpi(MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &some),
            "MPI_Group_incl");
  MPI_Comm made = MPI_COMM_NULL;
  const int code = MPI_Comm_create_group(comm, some, static_cast<int>(tag % 32749), &made);
  MPI_Group_free(&some);
  MPI_Group_free(&all);
  check_mpi(code, "MPI_Comm_create_group");
  return MPI_Comm_c2f(made);
}

}  // namespace thinwire::comm::mpi
