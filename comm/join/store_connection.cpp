#include "thinwire/comm/join/store_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <limits>
#include <string>
#include <system_error>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace thinwire::comm {
namespace {

// -1 where the file is no connected socket of IP.
int peer_port(int file) {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  if (getpeername(file, reinterpret_cast<sockaddr*>(&address), &size) != 0) return -1;
  if (address.ss_family == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return -1;
}

void end_after_silence(int socket, std::chrono::milliseconds timeout) {
  const auto set = [&](int level, int option, std::int64_t value) {
    const int number =
        static_cast<int>(std::min<std::int64_t>(value, std::numeric_limits<int>::max()));
    setsockopt(socket, level, option, &number, sizeof number);
  };
  // The first bounds what was sent and is not acknowledged. Who only waits for an answer needs the
  // others: questions after a third of the time, and then each sixth of it.
  const std::int64_t seconds = std::max<std::int64_t>(1, timeout.count() / 1000);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, timeout.count());
  set(IPPROTO_TCP, TCP_KEEPIDLE, std::clamp<std::int64_t>(seconds / 3, 1, 60));
  set(IPPROTO_TCP, TCP_KEEPINTVL, std::clamp<std::int64_t>(seconds / 6, 1, 60));
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
}

}  // namespace

void end_waits_for_a_silent_host(const c10::intrusive_ptr<c10d::Store>& store,
                                 std::chrono::milliseconds timeout) noexcept {
  try {
    c10::intrusive_ptr<c10d::Store> innermost = store;
    if (auto* prefixed = dynamic_cast<c10d::PrefixStore*>(store.get()))
      innermost = prefixed->getUnderlyingNonPrefixStore();
    const auto* tcp = dynamic_cast<const c10d::TCPStore*>(innermost.get());
    if (tcp == nullptr) return;
    timeout = std::max(timeout, std::chrono::milliseconds(1000));
    // c10d keeps its socket to itself; it is known by the port that it leads to.
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      const std::string name = entry.path().filename();
      int file = -1;
      std::from_chars(name.data(), name.data() + name.size(), file);
      if (file >= 0 && peer_port(file) == tcp->getPort()) end_after_silence(file, timeout);
    }
  } catch (const std::exception&) {
    // Without /proc the kernel's own patience has to do.
  }
}

}  // namespace thinwire::comm
