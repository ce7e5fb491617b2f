#include "thinwire/launch/host.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdlib>
#include <memory>
#include <thread>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"

namespace thinwire::launch {
namespace {

using boost::asio::ip::tcp;

// The first IPv4 address of a network interface, "" if it has none.
std::string address_of_interface(const std::string& name) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return "";
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr || entry->ifa_addr->sa_family != AF_INET || name != entry->ifa_name) {
      continue;
    }
    std::array<char, INET_ADDRSTRLEN> text{};
    const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
    return inet_ntop(AF_INET, &address->sin_addr, text.data(), text.size());
  }
  return "";
}

// One attempt at every address of the name, for at most `patience`; the reason if none accepted.
boost::system::error_code try_connect(const std::string& host, int port,
                                      std::chrono::milliseconds patience) {
  boost::asio::io_context context;
  boost::system::error_code result = boost::asio::error::timed_out;
  const auto addresses = tcp::resolver(context).resolve(host, std::to_string(port), result);
  if (result) return result;
  result = boost::asio::error::timed_out;
  tcp::socket socket(context);
  boost::asio::async_connect(
      socket, addresses,
      [&](const boost::system::error_code& outcome, const tcp::endpoint&) { result = outcome; });
  context.run_for(patience);
  return result;
}

}  // namespace

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

std::string reachable_address() {
  std::string interface = Env::get().gloo_interface;
  if (interface.empty()) {
    const char* gloo = std::getenv("GLOO_SOCKET_IFNAME");
    interface = gloo ? gloo : "";
  }
  if (interface.empty()) return host_name();
  const std::string address = address_of_interface(interface);
  check(!address.empty(), "the network interface '", interface,
        "' of THINWIRE_GLOO_INTERFACE or GLOO_SOCKET_IFNAME has no IPv4 address on ", host_name());
  return address;
}

void wait_until_listening(const std::string& host, int port, std::chrono::milliseconds timeout) {
  // A host that drops packets answers nothing at all: give up an attempt after this long, and try
  // again, since rank 0 may have come up meanwhile.
  constexpr std::chrono::milliseconds kAttempt(2000);
  const auto deadline = Clock::now() + timeout;
  auto pause = std::chrono::milliseconds(5);
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    const auto failure =
        try_connect(host, port, std::clamp(left, std::chrono::milliseconds(1), kAttempt));
    if (!failure) return;
    if (Clock::now() + pause >= deadline) {
      throw CommError(
          0, "joining the job", 0,
          concat("it does not serve the store at ", host, ":", port, " within ",
                 static_cast<double>(timeout.count()) / 1000, " s (", failure.message(), ")"));
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(100));
  }
}

}  // namespace thinwire::launch
