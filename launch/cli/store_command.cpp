// `thinwire store`: the store of a job that none of its ranks serves.
#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/common/error.h"
#include "thinwire/launch/cli/commands.h"
#include "thinwire/launch/host.h"

namespace thinwire::launch {
namespace {

void serve_until_told_to_stop(int port) {
  sigset_t ends;
  sigemptyset(&ends);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&ends, signal);
  // Before there are threads, which inherit it.
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  comm::prepare_process();  // a client that dies before its answer must not end the store
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = true;
  options.waitWorkers = false;
  c10::intrusive_ptr<c10d::TCPStore> store;
  try {
    store = c10::make_intrusive<c10d::TCPStore>("localhost", options);
  } catch (const std::exception& error) {
    throw CommError(-1, "serving the store", 0,
                    concat("port ", port, " cannot be listened on: ", comm::error_text(error)));
  }
  std::cout << "THINWIRE_STORE=" << host_name() << ":" << store->getPort() << std::endl;
  int signal = 0;
  sigwait(&ends, &signal);
}

}  // namespace

void add_store_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "store",
      "Serve the store through which the ranks of a job meet, until it gets SIGTERM, SIGINT or "
      "SIGHUP: for a job whose ranks may change, so that none of them is needed. One "
      "job, one store");
  const auto port = std::make_shared<int>(0);
  command->add_option("--port", *port, "To listen on, on all interfaces; 0: a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->footer(
      "Prints THINWIRE_STORE=HOST:PORT, which every rank is to have in its "
      "environment.");
  command->callback([port] { serve_until_told_to_stop(*port); });
}

}  // namespace thinwire::launch
