#include "thinwire/launch/job_store.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/common/error.h"
#include "thinwire/common/thread_apart.h"
#include "thinwire/launch/enrolment.h"
#include "thinwire/launch/host.h"

namespace thinwire::launch {
namespace {

using std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::TCPStore>;

using comm::error_text;

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
        -1, kJoining, 0,
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
  // On a thread of its own: torch's client waits for ever where a stranger accepts the connection
  // and does not answer.
  auto answer = on_a_thread_apart(
      [host, options]() -> StorePtr { return c10::make_intrusive<c10d::TCPStore>(host, options); });
  std::string reason = "does another program listen there?";
  try {
    if (answer.wait_for(timeout) == std::future_status::ready) return answer.get();
  } catch (const std::exception& error) {
    reason = error_text(error);
  }
  throw CommError(-1, kJoining, 0,
                  concat("no store answers at ", host, ":", port, " within ", seconds(timeout),
                         " s: ", reason));
}

StorePtr meet_at(const std::string& host, int port, bool serves, milliseconds timeout) {
  return serves ? serve(host, port, timeout) : connect(host, port, timeout);
}

// Rank 0's text, on every rank; cut where it is longer than kTextBytes.
std::string broadcast_text(c10d::Backend& mpi, const std::string& text) {
  constexpr std::size_t kTextBytes = 2000;
  // Owned by the tensor, since after a failure MPI may still write to it.
  std::vector<at::Tensor> tensors = {at::zeros({kTextBytes + 1}, at::kByte)};
  char* bytes = reinterpret_cast<char*>(tensors[0].mutable_data_ptr<std::uint8_t>());
  std::memcpy(bytes, text.data(), std::min(text.size(), kTextBytes));
  mpi.broadcast(tensors, {})->wait();
  return bytes;
}

// Rank 0 broadcasts "=HOST PORT", or "!" and why it cannot serve, so that nobody waits for it.
StorePtr meet_by_mpi(const RankEnv& env, milliseconds timeout) {
  const auto mpi = comm::make_mpi_backend(env.rank, env.size, timeout);
  if (env.rank != 0) {
    const std::string text = broadcast_text(*mpi, "");
    if (text[0] == '!') throw CommError(0, kJoining, 0, text.substr(1));
    const std::size_t blank = text.rfind(' ');
    return connect(text.substr(1, blank - 1), std::stoi(text.substr(blank + 1)), timeout);
  }
  StorePtr store;
  std::string text;
  std::exception_ptr trouble;
  try {
    const std::string host = env.local_size == env.size ? "127.0.0.1" : reachable_address();
    store = serve(host, 0, timeout);
    text = '=' + host + ' ' + std::to_string(store->getPort());
  } catch (const Error& error) {
    trouble = std::current_exception();
    text = concat('!', error.what());
  }
  broadcast_text(*mpi, text);
  if (trouble) std::rethrow_exception(trouble);
  return store;
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

StorePtr meet_without_address(const RankEnv& env, milliseconds timeout) {
  if (starts_mpi(env.launcher) && comm::mpi_backend_usable()) return meet_by_mpi(env, timeout);
  check(env.launcher == Launcher::kMpirun, name_of(env.launcher), " started rank ", env.rank,
        " of ", env.size,
        ", and this build of thinwire cannot use it to find the others: set MASTER_ADDR and "
        "MASTER_PORT, on every rank, to a host name of rank 0 and a free port there");
  return meet_under_mpirun_without_mpi(env, timeout);
}

}  // namespace

c10::intrusive_ptr<c10d::Store> connect_store(const RankEnv& env, milliseconds timeout) {
  StorePtr store;
  if (!env.master_addr.empty()) {
    const bool serves = env.rank == 0 && !env.agent_store;
    store = meet_at(env.master_addr, env.master_port, serves, timeout);
  } else if (env.size == 1) {
    return c10::make_intrusive<c10d::HashStore>();
  } else {
    store = meet_without_address(env, timeout);
  }
  store->setTimeout(timeout);
  return store;
}

}  // namespace thinwire::launch
