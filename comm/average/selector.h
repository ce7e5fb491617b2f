// Which way to average a set of layers: a pure function of sizes, codec and network, so that all
// ranks that ask with equal arguments get the same answer.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/dtype.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

// W ranks, S bytes of tensor, C bytes of payload, H hosts; sent: bytes that one rank hands over.
enum class Strategy {
  kDense,          // a mean of the payloads of a summable codec; sent 2 (W − 1) / W · C
  kScatterReduce,  // owners of slices decode, add, encode again; sent 2 (W − 1) / W · C
  kGatherReduce,   // everyone gets every payload; sent (W − 1) · C
  kSparse,         // owners of index ranges add the entries and send the union on
  kLowRank,        // two means of the factors; sent 2 (W − 1) / W · C; for each iteration
  kHierarchical,   // uncompressed inside a host, compressed between the hosts
};
inline constexpr std::array kStrategies = {Strategy::kDense,        Strategy::kScatterReduce,
                                           Strategy::kGatherReduce, Strategy::kSparse,
                                           Strategy::kLowRank,      Strategy::kHierarchical};

// "dense", "scatter_reduce", "gather_reduce", "sparse", "low_rank", "hierarchical"
std::string_view name_of(Strategy strategy);
// Throws InvalidArgument that lists the known names and the nearest.
Strategy parse_strategy(std::string_view name);

// A set of strategies.
class Strategies {
 public:
  constexpr Strategies(std::initializer_list<Strategy> members) {
    for (const Strategy s : members) bits_ |= 1u << static_cast<unsigned>(s);
  }
  static constexpr Strategies all() {
    return {Strategy::kDense,  Strategy::kScatterReduce, Strategy::kGatherReduce,
            Strategy::kSparse, Strategy::kLowRank,       Strategy::kHierarchical};
  }
  constexpr bool has(Strategy s) const { return (bits_ >> static_cast<unsigned>(s) & 1u) != 0; }
  constexpr Strategies operator|(Strategies other) const {
    other.bits_ |= bits_;
    return other;
  }
  constexpr Strategies operator&(Strategies other) const {
    other.bits_ &= bits_;
    return other;
  }
  bool operator==(const Strategies&) const = default;

 private:
  unsigned bits_ = 0;
};

// What the choice needs to know of a codec and of the layers that it is for.
struct CodecFacts {
  // What a payload holds, besides the traits: values block by block, chosen entries with their
  // indices, or two factors.
  enum class Form { kBlocks, kSparse, kLowRank };

  CodecTraits traits;
  std::int64_t block_size = 0;  // Codec::block_size()
  Form form = Form::kBlocks;
  std::int64_t payload_bytes = 0;  // of all layers on one rank, without frames
  // Of kLowRank: how often the factors travel, and what they are of payload_bytes. The rest, layers
  // that low rank would not make smaller, travels once.
  int iterations = 1;
  std::int64_t factor_bytes = 0;
  CodecCost cost = kAssumedCost;

  // Used for a codec that was not measured: 1 GB/s each way, slower than any codec of the table on
  // a processor of this decade, so that an unmeasured codec is not chosen on a fast network. Sparse
  // payloads are added entry by entry: their accumulate counts for the payload's bytes alone.
  static constexpr CodecCost kAssumedCost = {1e-9, 1e-9, 1e-9};
};

// Facts of `codec` for one layer of `numel` elements; `shape` as ConstTensorView's. The payload is
// the most that the codec writes, exactly what it writes for fixed_size and powersgd. `link` gives
// the measured cost, if it has one; it may be null.
CodecFacts facts_of(const Codec& codec, std::int64_t numel, DType dtype,
                    std::span<const std::int64_t> shape, const LinkModel* link = nullptr);

// The usual bar for compressing. A lower one would turn errors of the model into slower training on
// networks as fast as memory, where both ways take about as long; a higher one would refuse 16-bit
// casts, which save half.
inline constexpr double kRequiredGain = 1.5;

// Layers that share a codec, taken together: the latency of an exchange counts once for all.
struct ReductionRequest {
  std::int64_t bytes = 0;  // of the layers on one rank, in `dtype`
  DType dtype = DType::kFloat32;
  CodecFacts codec;
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

// The cheapest allowed way that the codec's traits permit, or "do not compress" where that gains
// too little or nothing is allowed; for powersgd low_rank or nothing, where it is allowed. Ties go
// to the strategy that stands first in kStrategies. Without a link model the bytes decide, with
// frames counted; with one the seconds, coding and decoding included and added up as if nothing
// overlapped. Pure and thread-safe. Throws InvalidArgument for sizes below 0 and for fewer than one
// host or fewer ranks than hosts.
ReductionChoice select_reduction(const ReductionRequest& request);

// What the codec's traits and the world permit, whatever it costs.
Strategies possible_strategies(const CodecFacts& codec, int world, int hosts);

// Throws InvalidArgument that says why the codec (named `spec` in the message) cannot be averaged
// that way, and which ways are possible: for strategies forced by name.
void check_strategy(Strategy strategy, std::string_view spec, const CodecFacts& codec, int world,
                    int hosts);

}  // namespace thinwire::comm
