// The one table of reductions: which codecs each of them takes, what a rank sends with it and what
// that costs. Pure functions of numbers that are equal on all ranks, so that all of them find the
// same; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
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
    for (const Strategy s : members) add(s);
  }
  static constexpr Strategies all() {
    return {Strategy::kDense,  Strategy::kScatterReduce, Strategy::kGatherReduce,
            Strategy::kSparse, Strategy::kLowRank,       Strategy::kHierarchical};
  }
  constexpr bool has(Strategy s) const { return (bits_ >> static_cast<unsigned>(s) & 1u) != 0; }
  constexpr void add(Strategy s) { bits_ |= 1u << static_cast<unsigned>(s); }
  constexpr Strategies operator&(Strategies other) const {
    other.bits_ &= bits_;
    return other;
  }
  bool operator==(const Strategies&) const = default;

 private:
  unsigned bits_ = 0;
};

// A codec and the layers that it is used for, as far as averaging them costs something.
struct CodecUse {
  CodecFacts facts;
  bool summable = false;    // CodecTraits::summable
  bool can_be_cut = false;  // Codec::can_be_cut()
  // Of all layers on one rank; payloads without frames.
  std::int64_t numel = 0;
  std::int64_t payload_bytes = 0;
  // Of codecs that send chosen entries: how many.
  std::int64_t entries = 0;
  // Of low rank: what the factors are of payload_bytes. They travel in every iteration; the rest,
  // layers that low rank would not make smaller, travels once.
  std::int64_t factor_bytes = 0;
  // Where payloads are made block by block, how many: among more ranks some own nothing. 0: not so.
  std::int64_t blocks = 0;
  CodecCost cost = kAssumedCost;

  // How many of `world` ranks own a part of what is cut between them.
  double owners(int world) const;
  // More layers for the same codec.
  void add_layers(const CodecUse& other);

  // Used for a codec that was not measured: 1 GB/s each way, slower than any codec of the table on
  // a processor of this decade, so that an unmeasured codec is not chosen on a fast network. Sparse
  // payloads are added entry by entry: their accumulate counts for the payload's bytes alone.
  static constexpr CodecCost kAssumedCost = {1e-9, 1e-9, 1e-9};
};

// `codec` for one layer of `numel` elements; `shape` as ConstTensorView's. The payload is the most
// that the codec writes, exactly what it writes for fixed_size and powersgd. `link` gives the
// measured cost, if it has one; it may be null.
CodecUse use_of(const Codec& codec, std::int64_t numel, DType dtype,
                std::span<const std::int64_t> shape, const LinkModel* link = nullptr);

// What codec and world permit, whatever it costs.
Strategies possible_strategies(const CodecUse& use, int world, int hosts);

// Throws InvalidArgument that says why the codec (named `spec` in the message) cannot be averaged
// that way, and which ways are possible: for strategies forced by name.
void check_strategy(Strategy strategy, std::string_view spec, const CodecUse& use, int world,
                    int hosts);

// Where layers are averaged, and what their frames weigh.
struct ReductionPlace {
  double tensor_bytes = 0;  // of the layers, uncompressed
  int world = 1;
  int hosts = 1;
  double frame_bytes = 0;  // of each message beside its payload
};

// Bytes that one rank sends; 0 for kHierarchical, where ranks differ.
double sent_bytes(Strategy strategy, const CodecUse& use, const ReductionPlace& place);
// Bytes that leave one host; one rank, where all ranks share a host.
double host_bytes(Strategy strategy, const CodecUse& use, const ReductionPlace& place);
// Seconds of its messages. kHierarchical needs the link's pairs.
double message_seconds(Strategy strategy, const CodecUse& use, const ReductionPlace& place,
                       const BackendLink& link);
// Seconds of encoding and decoding, added up as if nothing overlapped.
double coding_seconds(Strategy strategy, const CodecUse& use, const ReductionPlace& place);

// The backend's own all_reduce of the layers as they are: bytes that one rank sends, and, since its
// ring crosses the border of a host once, that leave a host.
double uncompressed_bytes(const ReductionPlace& place);

}  // namespace thinwire::comm
