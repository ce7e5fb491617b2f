#include "thinwire/comm/predict/scaled_link.h"

#include <algorithm>
#include <bit>

#include "thinwire/common/error.h"

namespace thinwire::comm {

BackendLink scaled_link(const NetworkSpeed& speed, int world, int hosts, Route route) {
  check(world >= 1 && hosts >= 1 && world % hosts == 0,
        "a network of hosts with equally many ranks has a multiple of its hosts as ranks, got ",
        world, " ranks on ", hosts, " hosts");
  const double others = world - 1;
  const double local = static_cast<double>(world) / hosts;
  // Rounded up: a tree of 5 ranks has the depth of one of 8.
  const double depth = std::bit_width(static_cast<unsigned>(std::max(0, world - 1)));
  const double hops = route == Route::kRing ? others : depth;
  const auto set = [](BackendLink& link, Collective collective, AlphaBeta cost) {
    link.collectives[static_cast<std::size_t>(collective)] = cost;
  };
  // Of what one rank sends to all others the part that leaves the host, for each rank of the host.
  const double leaving = hosts == 1 ? 1 : local * (world - local) / std::max(1.0, others);
  BackendLink link;
  set(link, Collective::kAllReduce, {2 * hops * speed.latency, speed.per_byte});
  set(link, Collective::kAllGather, {hops * speed.latency, speed.per_byte});
  set(link, Collective::kAllToAll,
      {speed.latency + std::max(0.0, others - 1) * speed.per_message, leaving * speed.per_byte});
  set(link, Collective::kBroadcast, {depth * speed.latency, speed.per_byte});
  return link;
}

NetworkSpeed speed_of(const BackendLink& link, int world) {
  NetworkSpeed speed;
  const double hops = 2.0 * std::max(1, world - 1);
  speed.latency = link.of(Collective::kAllReduce).alpha / hops;
  speed.per_byte = 0;
  for (const Collective collective : {Collective::kAllReduce, Collective::kAllToAll}) {
    speed.per_byte = std::max(speed.per_byte, link.of(collective).beta);
  }
  return speed;
}

}  // namespace thinwire::comm
