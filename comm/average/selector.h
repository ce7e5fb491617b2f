// Which way to average a set of layers: a pure function of sizes, codec and network, so that all
// ranks that ask with equal arguments get the same answer. What each way costs: reduction_table.h.
#pragma once

#include <cstdint>

#include "thinwire/comm/average/reduction_table.h"
#include "thinwire/comm/link/link_model.h"

namespace thinwire::comm {

// The usual bar for compressing. A lower one would turn errors of the model into slower training on
// networks as fast as memory, where both ways take about as long; a higher one would refuse 16-bit
// casts, which save half.
inline constexpr double kRequiredGain = 1.5;

// Layers that share a codec, taken together: the latency of an exchange counts once for all.
struct ReductionRequest {
  std::int64_t bytes = 0;  // of the layers on one rank, uncompressed
  CodecUse codec;
  int world = 1;
  // Different ones. Hierarchical needs equally many ranks on each, numbered host by host.
  int hosts = 1;
  // The backend's costs, measured with the same world; null: choose by bytes alone.
  const BackendLink* link = nullptr;
  // What the caller can do.
  Strategies allowed = Strategies::all();
  // A compressed way must be predicted to be this many times faster than the uncompressed one; 0:
  // take the fastest compressed way in any case.
  double required_gain = kRequiredGain;
};

struct ReductionChoice {
  // False: send the layers uncompressed, by one all_reduce (strategy is kDense).
  bool compress = false;
  Strategy strategy = Strategy::kDense;
  // Of the choice and of the uncompressed all_reduce: seconds where there is a link model, else
  // the bytes that leave one host, or one rank where all ranks share a host.
  double cost = 0;
  double uncompressed_cost = 0;
};

// The cheapest allowed way that the codec permits, or "do not compress" where that gains too little
// or nothing is allowed; for powersgd low_rank or nothing, where it is allowed. Ties go to the
// strategy that stands first in kStrategies. Without a link model the bytes decide, with frames
// counted; with one the seconds, coding and decoding included and added up as if nothing
// overlapped. Pure and thread-safe. Throws InvalidArgument for sizes below 0 and for fewer than one
// host or fewer ranks than hosts.
ReductionChoice select_reduction(const ReductionRequest& request);

// The choice without a network to reckon with: the reduction that the codec was made for; for
// sparse codecs, owners of index ranges where these are sent less than everyone, with frames of
// `frame_bytes` counted.
Strategy usual_strategy(const CodecUse& use, int world, double frame_bytes);

}  // namespace thinwire::comm
