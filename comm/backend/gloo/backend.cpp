#include "thinwire/comm/backend/gloo/backend.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <nlohmann/json.hpp>
#include <string_view>

// The only file that may include this; see Note [Gloo headers] in headers/gloo/.
#include <torch/csrc/distributed/c10d/FlightRecorder.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "thinwire/comm/join/error_text.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

using c10d::ProcessGroupGloo;

std::shared_ptr<gloo::transport::Device> make_device(const GlooOptions& options) {
  std::string interface = options.interface;
  if (interface.empty() && options.hostname.empty()) {
    interface = Env::get().gloo_interface;
    // LibTorch itself reads this variable in its Python layer only.
    const char* torch_interface = std::getenv("GLOO_SOCKET_IFNAME");
    if (interface.empty() && torch_interface != nullptr) interface = torch_interface;
  }
  try {
    if (!interface.empty()) return ProcessGroupGloo::createDeviceForInterface(interface);
    if (!options.hostname.empty())
      return ProcessGroupGloo::createDeviceForHostname(options.hostname);
    return ProcessGroupGloo::createDefaultDevice();
  } catch (const std::exception& error) {
    const std::string place = !interface.empty()          ? concat("interface '", interface, "'")
                              : !options.hostname.empty() ? concat("'", options.hostname, "'")
                                                          : "this host's address";
    throw InvalidArgument(concat(
        "Gloo cannot listen on ", place,
        "; THINWIRE_GLOO_INTERFACE names another interface. Gloo says: ", error_text(error)));
  }
}

c10::intrusive_ptr<c10d::Backend> connect(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                          int size, std::shared_ptr<gloo::transport::Device> device,
                                          std::chrono::milliseconds timeout) {
  prepare_gloo_backend();
  auto options = ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(std::move(device));
  // split() looks its ranks up in it.
  for (int r = 0; r < size; ++r)
    options->global_ranks_in_group.push_back(static_cast<std::uint64_t>(r));
  return c10::make_intrusive<ProcessGroupGloo>(store, rank, size, std::move(options));
}

// LibTorch has no way to end a group's operations before their timeout.
struct GlooContexts : ProcessGroupGloo {
  static const std::vector<std::shared_ptr<gloo::Context>>& of(const ProcessGroupGloo& group) {
    return group.*(&GlooContexts::contexts_);
  }
};

}  // namespace

void check_gloo_backend(const GlooOptions& options) {
  make_device(options);
}

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size,
                                                    const GlooOptions& options) {
  return connect(store, rank, size, make_device(options), options.timeout);
}

c10::intrusive_ptr<c10d::Backend> reconnect_gloo_backend(
    const c10::intrusive_ptr<c10d::Backend>& backend, const c10::intrusive_ptr<c10d::Store>& store,
    const std::vector<int>& ranks) {
  auto* gloo = dynamic_cast<ProcessGroupGloo*>(backend.get());
  check(gloo != nullptr, "backend '", backend->getBackendName(), "' is not Gloo");
  const auto options = gloo->getOptions();
  THINWIRE_ASSERT(!options->devices.empty());
  // Two groups at least from now on, and likely two threads.
  static const bool warned = [] {
    if (flight_recorder_is_on())
      log::warn(
          "torch's flight recorder is on in this process, and crashes now and then when two "
          "threads "
          "use Gloo: set TORCH_FR_BUFFER_SIZE=0, or call thinwire::launch::init() or "
          "thinwire::comm::prepare_process() before the first use of Gloo");
    return true;
  }();
  static_cast<void>(warned);
  const auto place = std::ranges::find(ranks, gloo->getRank());
  THINWIRE_ASSERT(place != ranks.end());
  return connect(store, static_cast<int>(place - ranks.begin()), static_cast<int>(ranks.size()),
                 options->devices.front(), options->timeout);
}

void close_gloo_backend(c10d::Backend& backend) {
  const auto* gloo = dynamic_cast<const ProcessGroupGloo*>(&backend);
  if (gloo == nullptr) return;
  for (const auto& context : GlooContexts::of(*gloo)) context->closeConnections();
}

// Note [Flight recorder]
// Every Gloo operation is entered into a record of the process, and the record adds a group to its
// map without a lock. A program's thread and the communication thread, on different groups, then
// crash each other now and then. Switched off the record returns first. It reads this variable
// once, at the first operation of the process; whoever sets it keeps the record, and the risk. So
// does a program that has used Gloo before: it is warned.
//
// Note [Broken pipes]
// Gloo writes to its sockets with writev(), which cannot ask for an error instead of SIGPIPE. Where
// a peer has gone and this rank writes before it reads, the signal ends the process without a word.
// Ignored, the write fails with EPIPE, and Gloo reports the peer. Python ignores it from its start.
void prepare_gloo_backend() {
  static const bool done = [] {
    setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0);
    struct sigaction present = {};
    if (sigaction(SIGPIPE, nullptr, &present) == 0 && (present.sa_flags & SA_SIGINFO) == 0 &&
        present.sa_handler == SIG_DFL)
      std::signal(SIGPIPE, SIG_IGN);
    return true;
  }();
  static_cast<void>(done);
}

bool flight_recorder_is_on() {
  prepare_gloo_backend();
  const char* asked = std::getenv("TORCH_FR_BUFFER_SIZE");
  if (asked != nullptr && std::string_view(asked) != "0") return true;
  // A record that is off stays empty; one that was on before knows the groups or what they did.
  const auto trace = nlohmann::json::parse(c10d::dump_fr_trace_json(true, false), nullptr,
                                           /*allow_exceptions=*/false);
  if (trace.is_discarded()) return false;
  return trace.contains("entries") ||
         (trace.contains("pg_config") && !trace.at("pg_config").empty());
}

}  // namespace thinwire::comm
