#include "thinwire/launch/rank_env.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/launch/node_list.h"

namespace thinwire::launch {
namespace {

// Reads variables and turns them into numbers, with errors that name them.
class Variables {
 public:
  explicit Variables(const EnvLookup& lookup) : lookup_(lookup) {}

  std::optional<std::string> text(const std::string& name) const {
    auto value = lookup_(name);
    return value && !value->empty() ? value : std::nullopt;
  }

  bool has(const std::string& name) const { return text(name).has_value(); }

  std::optional<long long> number(const std::string& name, long long minimum,
                                  long long maximum) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    long long result = 0;
    const char* const end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, result);
    check(error == std::errc() && stop == end && result >= minimum && result <= maximum,
          "the environment variable ", name, "='", *value, "' must be a whole number from ",
          minimum, " to ", maximum);
    return result;
  }

  // A count or index of ranks; throws where it is missing, naming `because`, which is set.
  int required(const std::string& name, int minimum, const std::string& because) const {
    const auto value = number(name, minimum, kMostRanks);
    check(value.has_value(), because, " is set, but ", name, " is not: the launcher must set both");
    return static_cast<int>(*value);
  }

  int optional(const std::string& name, int minimum, int fallback) const {
    return static_cast<int>(number(name, minimum, kMostRanks).value_or(fallback));
  }

 private:
  static constexpr int kMostRanks = 1 << 24;

  const EnvLookup& lookup_;
};

// `index` must be below `count`; where a count is not known (0) there is nothing to compare.
void check_below(const std::string& index_name, int index, const std::string& count_name,
                 int count) {
  check(count == 0 || index < count, index_name, "=", index, " must be less than ", count_name, "=",
        count);
}

// MASTER_ADDR and MASTER_PORT, which work by hand under every launcher. Both or neither.
void read_master(const Variables& read, RankEnv& env) {
  const auto address = read.text("MASTER_ADDR");
  const auto port = read.number("MASTER_PORT", 1, 65535);
  check(address.has_value() == port.has_value(), address ? "MASTER_ADDR" : "MASTER_PORT",
        " is set, but ", address ? "MASTER_PORT" : "MASTER_ADDR", " is not: set both");
  if (!address) return;
  env.master_addr = *address;
  env.master_port = static_cast<int>(*port);
}

// torch writes Python's str(bool).
bool read_agent_store(const Variables& read) {
  const std::string name = "TORCHELASTIC_USE_AGENT_STORE";
  const std::string value = read.text(name).value_or("False");
  check(value == "True" || value == "False", "the environment variable ", name, "='", value,
        "' must be True or False");
  return value == "True";
}

RankEnv read_torchrun(const Variables& read) {
  RankEnv env;
  env.launcher = Launcher::kTorchrun;
  env.rank = read.required("RANK", 0, "WORLD_SIZE");
  env.size = read.required("WORLD_SIZE", 1, "RANK");
  env.local_rank = read.optional("LOCAL_RANK", 0, -1);
  env.local_size = read.optional("LOCAL_WORLD_SIZE", 1, 0);
  check_below("RANK", env.rank, "WORLD_SIZE", env.size);
  check_below("LOCAL_RANK", env.local_rank, "LOCAL_WORLD_SIZE", env.local_size);
  check(env.local_size <= env.size, "LOCAL_WORLD_SIZE=", env.local_size,
        " must not be more than WORLD_SIZE=", env.size);
  read_master(read, env);
  env.agent_store = read_agent_store(read);
  env.restart = read.optional("TORCHELASTIC_RESTART_COUNT", 0, 0);
  check(!env.master_addr.empty() || (env.size == 1 && !env.agent_store), "RANK=", env.rank,
        " and WORLD_SIZE=", env.size,
        " are set, but MASTER_ADDR and MASTER_PORT are not: set them to a host name of rank 0 and "
        "a free port there");
  return env;
}

RankEnv read_mpirun(const Variables& read) {
  const std::string world = "OMPI_COMM_WORLD_";
  RankEnv env;
  env.launcher = Launcher::kMpirun;
  env.rank = read.required(world + "RANK", 0, world + "SIZE");
  env.size = read.required(world + "SIZE", 1, world + "RANK");
  env.local_rank = read.optional(world + "LOCAL_RANK", 0, -1);
  env.local_size = read.optional(world + "LOCAL_SIZE", 1, 0);
  check_below(world + "RANK", env.rank, world + "SIZE", env.size);
  check_below(world + "LOCAL_RANK", env.local_rank, world + "LOCAL_SIZE", env.local_size);
  check(env.local_size <= env.size, world, "LOCAL_SIZE=", env.local_size, " must not be more than ",
        world, "SIZE=", env.size);
  read_master(read, env);
  return env;
}

// How many of the step's tasks run on this host, 0 if Slurm does not say.
int read_slurm_local_size(const Variables& read, int size) {
  const auto per_node = read.text("SLURM_STEP_TASKS_PER_NODE");
  const auto node = read.number("SLURM_NODEID", 0, 1 << 24);
  if (!per_node || !node) return size == 1 ? 1 : 0;
  const auto counts = expand_tasks_per_node(*per_node);
  check(static_cast<std::size_t>(*node) < counts.size(), "SLURM_NODEID=", *node,
        " does not fit SLURM_STEP_TASKS_PER_NODE='", *per_node, "', which describes ",
        counts.size(), " host(s)");
  return counts[static_cast<std::size_t>(*node)];
}

void read_slurm_master(const Variables& read, RankEnv& env) {
  read_master(read, env);
  if (!env.master_addr.empty() || env.size == 1) return;
  auto nodes = read.text("SLURM_STEP_NODELIST");
  if (!nodes) nodes = read.text("SLURM_JOB_NODELIST");
  const auto job = read.number("SLURM_JOB_ID", 0, 0xFFFFFFFF);
  check(nodes && job, "SLURM_PROCID=", env.rank, " is set, but ",
        nodes ? "SLURM_JOB_ID" : "SLURM_STEP_NODELIST",
        " is not: start the program with srun, or set MASTER_ADDR and MASTER_PORT");
  env.master_addr = expand_node_list(*nodes).front();
  env.master_port = slurm_port(*job, read.number("SLURM_STEP_ID", 0, 0xFFFFFFFF).value_or(0));
}

RankEnv read_slurm(const Variables& read) {
  const std::string count =
      read.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  RankEnv env;
  env.launcher = Launcher::kSlurm;
  env.rank = read.required("SLURM_PROCID", 0, count);
  env.size = read.required(count, 1, "SLURM_PROCID");
  env.local_rank = read.optional("SLURM_LOCALID", 0, -1);
  check_below("SLURM_PROCID", env.rank, count, env.size);
  env.local_size = read_slurm_local_size(read, env.size);
  check_below("SLURM_LOCALID", env.local_rank, "this host's part of SLURM_STEP_TASKS_PER_NODE",
              env.local_size);
  read_slurm_master(read, env);
  return env;
}

// A batch script carries SLURM_PROCID=0 and the whole job's SLURM_NTASKS, but it is no step: what
// it starts without srun is one process.
bool started_by_srun(const Variables& read) {
  if (!read.has("SLURM_PROCID")) return false;
  const bool in_step = read.has("SLURM_STEP_ID") || read.has("SLURM_STEP_NUM_TASKS");
  return in_step || read.text("ENVIRONMENT") != "BATCH";
}

}  // namespace

std::string_view name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::kTorchrun:
      return "torchrun";
    case Launcher::kMpirun:
      return "mpirun";
    case Launcher::kSlurm:
      return "srun";
    case Launcher::kNone:
      return "none";
  }
  return "unknown";
}

RankEnv read_rank_env(const EnvLookup& lookup) {
  const Variables read(lookup);
  if (read.has("RANK")) return read_torchrun(read);
  RankEnv env;
  if (read.has("OMPI_COMM_WORLD_RANK") || read.has("OMPI_COMM_WORLD_SIZE")) {
    env = read_mpirun(read);
  } else if (started_by_srun(read)) {
    env = read_slurm(read);
  }
  // Somebody meant a job of that size; to run as another one would train without the others.
  const int wanted = read.optional("WORLD_SIZE", 1, env.size);
  check(wanted == env.size, "WORLD_SIZE=", wanted, " is set without RANK, but ",
        env.launcher == Launcher::kNone ? std::string("no launcher was found")
                                        : concat(name_of(env.launcher), " started ", env.size),
        env.launcher == Launcher::kNone ? "" : " rank(s)");
  return env;
}

RankEnv read_rank_env() {
  return read_rank_env([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  });
}

int slurm_port(long long job, long long step) {
  return static_cast<int>(15000 + (31 * job + step) % 15000);
}

}  // namespace thinwire::launch
