// Rank and size as the launcher tells them. Precedence: torchrun's RANK, then Open MPI's OMPI_*,
// then SLURM_*, then a job of one rank.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace thinwire::launch {

enum class Launcher { kTorchrun, kMpirun, kSlurm, kNone };
std::string_view name_of(Launcher launcher);

struct RankEnv {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  // Where the store is; under mpirun empty and 0 until rank 0 has told the others.
  std::string master_addr;
  int master_port = 0;
  // torchrun's agent serves the store: every rank connects as a client.
  bool agent_store = false;
  // torchrun's restart count, part of the store's prefix.
  int restart = 0;
};

// Throws InvalidArgument, naming the variables and their values, when they are missing, malformed
// or contradict each other (RANK >= WORLD_SIZE, RANK without WORLD_SIZE, ...).
using EnvLookup = std::function<std::optional<std::string>(const std::string& name)>;
RankEnv read_rank_env(const EnvLookup& lookup);
RankEnv read_rank_env();

}  // namespace thinwire::launch
