// This host's name and address, and whether another host listens.
#pragma once

#include <chrono>
#include <string>

namespace thinwire::launch {

std::string host_name();

// Where other hosts reach this one: the IPv4 address of THINWIRE_GLOO_INTERFACE or
// GLOO_SOCKET_IFNAME, else the host's name. Throws InvalidArgument where that interface has no
// address.
std::string reachable_address();

// Returns once somebody accepts connections at host:port. torch's own client waits a second
// between its attempts and logs each; this asks every few milliseconds, so that a job starts as
// soon as rank 0 does. Throws CommError, naming host and port, after the timeout or where the name
// cannot be resolved.
void wait_until_listening(const std::string& host, int port, std::chrono::milliseconds timeout);

}  // namespace thinwire::launch
