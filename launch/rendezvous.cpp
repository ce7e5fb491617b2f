#include "thinwire/launch/rendezvous.h"

#include <unistd.h>

#include <cstdlib>
#include <functional>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/comm/mpi_backend.h"
#include "thinwire/common/error.h"
#include "thinwire/launch/error_text.h"
#include "thinwire/launch/host.h"

namespace thinwire::launch {
namespace {

using std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::TCPStore>;

constexpr const char* kOperation = "joining the job";

double seconds(milliseconds time) {
  return static_cast<double>(time.count()) / 1000;
}

// Port 0 takes a free one.
StorePtr serve(const std::string& host, int port, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = true;
  options.waitWorkers = false;  // enrol() waits, and names who is missing
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::TCPStore>(host, options);
  } catch (const std::exception& error) {
    const std::string reason = error_text(error);
    const bool taken = reason.find("EADDRINUSE") != std::string::npos ||
                       reason.find("in use") != std::string::npos;
    throw CommError(
        -1, kOperation, 0,
        taken ? concat("port ", port, " is in use on this host, rank 0 of ", host,
                       " cannot serve the store there; set MASTER_PORT to a free port")
              : concat("rank 0 cannot serve the store at ", host, ":", port, ": ", reason));
  }
}

StorePtr connect(const std::string& host, int port, milliseconds timeout) {
  wait_until_listening(host, port, timeout);
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::TCPStore>(host, options);
  } catch (const std::exception& error) {
    throw CommError(-1, kOperation, 0,
                    concat("no store answers at ", host, ":", port, " within ", seconds(timeout),
                           " s: ", error_text(error)));
  }
}

StorePtr meet_at(const std::string& host, int port, bool serves, milliseconds timeout) {
  return serves ? serve(host, port, timeout) : connect(host, port, timeout);
}

// The name that Open MPI's launcher gives to the job: the same on every rank, another for the next.
std::string mpirun_job() {
  for (const char* name : {"OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE"}) {
    if (const char* value = std::getenv(name)) return value;
  }
  return "";
}

StorePtr meet_under_mpirun_without_mpi(const RankEnv& env, milliseconds timeout) {
  const std::string job = mpirun_job();
  check(env.local_size == env.size && !job.empty(),
        "mpirun started this program, but this build of thinwire has no MPI, by which ",
        job.empty() ? "the ranks" : "ranks on several hosts",
        " agree on an address; pass one with mpirun -x MASTER_ADDR=<host of rank 0> -x "
        "MASTER_PORT=<free port>, or rebuild with -DTHINWIRE_WITH_MPI=ON");
  std::uint32_t hash = 0;
  for (const char c : job) hash = 31 * hash + static_cast<unsigned char>(c);
  return meet_at("127.0.0.1", slurm_port(hash, 0), env.rank == 0, timeout);
}

}  // namespace

bool serves_store(const RankEnv& env) {
  return env.rank == 0 && !env.agent_store;
}

c10::intrusive_ptr<c10d::Store> connect_store(const RankEnv& env, milliseconds timeout) {
  StorePtr store;
  if (!env.master_addr.empty()) {
    store = meet_at(env.master_addr, env.master_port, serves_store(env), timeout);
  } else if (env.size == 1) {
    return c10::make_intrusive<c10d::HashStore>();
  } else {
    store = meet_under_mpirun_without_mpi(env, timeout);
  }
  store->setTimeout(timeout);
  return store;
}

}  // namespace thinwire::launch
