// The costs of collectives on networks that were not measured.
#pragma once

#include "thinwire/comm/link/link_model.h"

namespace thinwire::comm {

// How a backend does its all_reduce and all_gather: round a ring, as Gloo does, or by halving and
// doubling, as NCCL and MPI may for what is not large.
enum class Route { kRing, kTree };

struct NetworkSpeed {
  double latency = 50e-6;     // seconds of one message
  double per_byte = 8e-9;     // seconds of a byte that a host sends, at full rate
  double per_message = 5e-6;  // seconds that a rank needs to hand over a further message
};

// Of `world` ranks on hosts of equally many, all of which share their host's link. Assumes: bytes
// cost what the link takes for them, with no congestion inside the network; an all_reduce of a ring
// takes 2 (W − 1) messages one after another, of a tree 2 log2 W; an all_gather half of that; an
// all_to_all hands W − 1 messages over at once; a broadcast takes log2 W. The ring crosses the
// border of a host once, an all_to_all with the messages of all its ranks to all other hosts.
BackendLink scaled_link(const NetworkSpeed& speed, int world, int hosts, Route route);

// What a measured link says of its network: latency from its all_reduce (a ring), and the bytes'
// cost of the slowest collective.
NetworkSpeed speed_of(const BackendLink& link, int world);

}  // namespace thinwire::comm
