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
  if (const auto store = read.text("THINWIRE_STORE")) {
    use_store(env, *store);
    return;
  }
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
  env.agent_store = read_agent_store(read) || env.agent_store;
  env.run_id = read.text("TORCHELASTIC_RUN_ID").value_or("");
  check(!env.master_addr.empty() || (env.size == 1 && !env.agent_store), "RANK=", env.rank,
        " and WORLD_SIZE=", env.size,
        " are set, but MASTER_ADDR and MASTER_PORT are not: set them to a host name of rank 0 and "
        "a free port there");
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

// The variables of a launcher that tells rank and size and, under mpirun at least, where the others
// are by MPI alone.
struct LauncherVariables {
  Launcher launcher;
  std::string_view name;
  std::string rank, size;
  std::string local_rank, local_size;  // empty where it has none
};

const std::vector<LauncherVariables>& known_launchers() {
  // In the order in which they count.
  static const std::vector<LauncherVariables> all = {
      {Launcher::kMpirun, "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
       "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      {Launcher::kMvapich, "MVAPICH's mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
       "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"},
      {Launcher::kJsrun, "jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE",
       "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"},
      {Launcher::kFlux, "flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", ""},
      {Launcher::kMpiexec, "mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID",
       "MPI_LOCALNRANKS"}};
  return all;
}

RankEnv read_launcher(const Variables& read, const LauncherVariables& names) {
  RankEnv env;
  env.launcher = names.launcher;
  env.rank = read.required(names.rank, 0, names.size);
  env.size = read.required(names.size, 1, names.rank);
  env.local_rank = read.optional(names.local_rank, 0, -1);
  env.local_size = names.local_size.empty() ? 0 : read.optional(names.local_size, 1, 0);
  check_below(names.rank, env.rank, names.size, env.size);
  check_below(names.local_rank, env.local_rank, names.local_size, env.local_size);
  check(env.local_size <= env.size, names.local_size, "=", env.local_size,
        " must not be more than ", names.size, "=", env.size);
  read_master(read, env);
  return env;
}

// srun sets PMI_* as well where it speaks PMI. Another launcher that starts its own helpers by srun
// passes on the numbers of those.
bool srun_speaks_pmi(const Variables& read) {
  if (!started_by_srun(read)) return false;
  const RankEnv pmi = read_launcher(read, known_launchers().back());
  const RankEnv slurm = read_slurm(read);
  return pmi.rank == slurm.rank && pmi.size == slurm.size;
}

const LauncherVariables* launcher_of(const Variables& read) {
  for (const LauncherVariables& names : known_launchers()) {
    if (!read.has(names.rank) && !read.has(names.size)) continue;
    if (names.launcher == Launcher::kMpiexec && srun_speaks_pmi(read)) continue;
    return &names;
  }
  return nullptr;
}

// Of a process that no launcher is found for: whether it is a part of a job all the same.
void refuse_half_a_job(const Variables& read) {
  // A program alone that has started Open MPI carries PMIX_RANK=0 from then on.
  const bool singleton = read.text("OMPI_MCA_ess") == "singleton";
  for (const std::string name : {"PALS_RANKID", "PMIX_RANK"})
    check(!read.has(name) || singleton, name, "=", read.text(name).value_or(""),
          " says that this process is one of a job, but not of how many; set RANK and WORLD_SIZE, "
          "and MASTER_ADDR and MASTER_PORT to a host name of rank 0 and a free port there");
}

}  // namespace

std::string_view name_of(Launcher launcher) {
  if (launcher == Launcher::kTorchrun) return "torchrun";
  if (launcher == Launcher::kSlurm) return "srun";
  for (const LauncherVariables& names : known_launchers())
    if (names.launcher == launcher) return names.name;
  return "none";
}

bool starts_mpi(Launcher launcher) {
  return launcher == Launcher::kMpirun || launcher == Launcher::kMpiexec ||
         launcher == Launcher::kMvapich || launcher == Launcher::kJsrun;
}

RankEnv read_rank_env(const EnvLookup& lookup) {
  const Variables read(lookup);
  if (read.has("RANK")) return read_torchrun(read);
  RankEnv env;
  if (const LauncherVariables* names = launcher_of(read)) {
    env = read_launcher(read, *names);
  } else if (started_by_srun(read)) {
    env = read_slurm(read);
  } else {
    refuse_half_a_job(read);
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

void use_store(RankEnv& env, const std::string& address) {
  const std::size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  int port = 0;
  const char* const end = address.data() + address.size();
  const char* const begin = colon == std::string::npos ? end : address.data() + colon + 1;
  const auto [stop, error] = std::from_chars(begin, end, port);
  check(!host.empty() && error == std::errc() && stop == end && port > 0 && port <= 65535,
        "the environment variable THINWIRE_STORE='", address,
        "' must be HOST:PORT, the address of a store that `thinwire store` serves");
  env.master_addr = host;
  env.master_port = port;
  env.agent_store = true;
}

int slurm_port(long long job, long long step) {
  return static_cast<int>(15000 + (31 * job + step) % 15000);
}

}  // namespace thinwire::launch
