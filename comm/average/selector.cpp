#include "thinwire/comm/average/selector.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/powersgd.h"

namespace thinwire::comm {
namespace {

constexpr double kFrame = kFrameHeaderBytes;

// Terms of the formulas below, all in bytes or ranks.
struct Terms {
  double tensor;   // S
  double floats;   // S in float32, which is what codecs work on
  double payload;  // C
  double world;    // W
  double hosts;    // H
  double local;    // ranks a host
  bool scatters;   // the codec's payload can be cut
  // Of low rank: rounds of its two means, and what of C travels in each.
  double iterations;
  double factors;
};

// What the owner of a slice sends on when entries of all ranks meet there: the union, at most the
// tensor itself.
double union_bytes(const Terms& t) {
  return std::min(t.world * t.payload, t.tensor);
}

// Bytes that one rank sends, frames included.
double rank_bytes(Strategy strategy, const Terms& t) {
  const double others = t.world - 1;
  switch (strategy) {
    case Strategy::kDense:
      return 2 * others / t.world * t.payload;
    case Strategy::kLowRank:
      return 2 * others / t.world * (t.payload + (t.iterations - 1) * t.factors);
    case Strategy::kScatterReduce:
      return 2 * others * (t.payload / t.world + kFrame);
    case Strategy::kGatherReduce:
      return others * (t.payload + kFrame);
    case Strategy::kSparse:
      return others * ((t.payload + union_bytes(t)) / t.world + 2 * kFrame);
    case Strategy::kHierarchical:
      break;
  }
  return 0;
}

// Bytes between the hosts, for the one rank of each host that speaks for all.
double leader_bytes(const Terms& t) {
  const double others = t.hosts - 1;
  return t.scatters ? 2 * others * (t.payload / t.hosts + kFrame) : others * (t.payload + kFrame);
}

// Bytes that leave one host: messages from each rank to each.
double host_bytes(Strategy strategy, const Terms& t) {
  if (strategy == Strategy::kHierarchical) return leader_bytes(t);
  const double bytes = rank_bytes(strategy, t);
  if (t.hosts == 1 || t.local == 1) return bytes;
  return t.local * bytes * (t.world - t.local) / (t.world - 1);
}

// The backend's own all_reduce: bytes that one rank sends, and, since its ring crosses the border
// of a host once, that leave a host.
double uncompressed_bytes(const Terms& t) {
  return 2 * (t.world - 1) / t.world * t.tensor;
}

// So many bytes travel to their owners and back (scatter_reduce.h, exact_mean.h).
double there_and_back(double bytes, const BackendLink& link) {
  return 2 * link.predict(Collective::kAllToAll, bytes / 2);
}

double wire_seconds(Strategy strategy, const Terms& t, const BackendLink& link) {
  const double others = t.world - 1;
  const double bytes = rank_bytes(strategy, t);
  switch (strategy) {
    case Strategy::kDense:
    case Strategy::kScatterReduce:
      return there_and_back(bytes, link);
    case Strategy::kLowRank: {
      const double means = 2 * t.iterations;
      return means * there_and_back(bytes / means, link);
    }
    case Strategy::kGatherReduce:
      // The sizes travel first.
      return link.of(Collective::kAllGather).alpha + link.predict(Collective::kAllToAll, bytes);
    case Strategy::kSparse:
      return link.of(Collective::kAllGather).alpha +
             link.predict(Collective::kAllToAll, others * (t.payload / t.world + kFrame)) +
             link.predict(Collective::kAllGather, others * (union_bytes(t) / t.world + kFrame));
    case Strategy::kHierarchical: {
      const AlphaBeta& inside = link.pairs[0][1];
      const AlphaBeta& between = link.pairs[0][static_cast<std::size_t>(t.local)];
      const double ring =
          2 * (t.local - 1) * inside.alpha + 2 * (t.local - 1) / t.local * t.tensor * inside.beta;
      return ring + (t.scatters ? 2 : 1) * between.alpha + leader_bytes(t) * between.beta +
             inside.predict(t.tensor);
    }
  }
  return 0;
}

// A rank encodes its values and decodes what it gets; owners do so for their part once more.
double codec_seconds(Strategy strategy, const Terms& t, const CodecCost& cost) {
  switch (strategy) {
    case Strategy::kDense:
    case Strategy::kLowRank:
      return t.floats * (cost.compress + cost.decompress);
    case Strategy::kScatterReduce:
    case Strategy::kSparse:
      return t.floats *
             (cost.compress + cost.accumulate + cost.compress / t.world + cost.decompress);
    case Strategy::kGatherReduce:
      // The first payload is written over everything, the others are added.
      return t.floats * (cost.compress + cost.decompress + (t.world - 1) * cost.accumulate);
    case Strategy::kHierarchical:
      return t.floats * (cost.compress + (t.scatters ? 1 : t.hosts) * cost.accumulate +
                         cost.compress / t.hosts + cost.decompress);
  }
  return 0;
}

}  // namespace

std::string_view name_of(Strategy strategy) {
  constexpr std::array<std::string_view, kStrategies.size()> kNames = {
      "dense", "scatter_reduce", "gather_reduce", "sparse", "low_rank", "hierarchical"};
  return kNames[static_cast<std::size_t>(strategy)];
}

Strategy parse_strategy(std::string_view name) {
  std::vector<std::string> known;
  std::string list;
  for (const Strategy strategy : kStrategies) {
    if (name_of(strategy) == name) return strategy;
    known.emplace_back(name_of(strategy));
    list += (list.empty() ? "" : ", ") + known.back();
  }
  const std::string near = nearest_name(name, known);
  throw InvalidArgument(concat("unknown strategy '", name, "', known are ", list,
                               near.empty() ? "" : concat("; did you mean ", near, "?")));
}

CodecFacts facts_of(const Codec& codec, std::int64_t numel, DType dtype,
                    std::span<const std::int64_t> shape, const LinkModel* link) {
  const std::string spec = codec.spec();
  const Spec parsed = Spec::parse(spec);
  CodecFacts facts;
  facts.traits = codec.traits();
  facts.block_size = codec.block_size();
  facts.payload_bytes = static_cast<std::int64_t>(codec.max_compressed_bytes(numel, dtype));
  if (parsed.name == "topk" || parsed.name == "ternary") {
    facts.form = CodecFacts::Form::kSparse;
    const auto floats = static_cast<double>(std::max<std::int64_t>(numel, 1)) * sizeof(float);
    facts.cost.accumulate *= std::min(1.0, static_cast<double>(facts.payload_bytes) / floats);
  }
  if (parsed.name == "powersgd") {
    facts.form = CodecFacts::Form::kLowRank;
    const PowerSgdOptions options = powersgd_options(parsed);
    facts.iterations = options.iterations;
    const LowRankShape low_rank = low_rank_shape(shape, dtype, options.rank);
    if (low_rank.rank > 0) {
      facts.factor_bytes = low_rank.factor_numel() * static_cast<std::int64_t>(sizeof(float));
      facts.payload_bytes = facts.factor_bytes;
    }
  }
  if (link != nullptr) {
    if (const CodecCost* cost = link->codec(spec)) facts.cost = *cost;
  }
  return facts;
}

Strategies possible_strategies(const CodecFacts& codec, int world, int hosts) {
  Strategies possible = {Strategy::kGatherReduce};
  if (codec.traits.summable) possible = possible | Strategies{Strategy::kDense};
  if (codec.traits.fixed_size && codec.block_size > 0) {
    possible = possible | Strategies{Strategy::kScatterReduce};
  }
  if (codec.form == CodecFacts::Form::kSparse) possible = possible | Strategies{Strategy::kSparse};
  if (codec.form == CodecFacts::Form::kLowRank) {
    possible = possible | Strategies{Strategy::kLowRank};
  }
  // It cuts layers between the ranks of a host, and low rank needs whole matrices.
  if (hosts > 1 && world > hosts && world % hosts == 0 &&
      codec.form != CodecFacts::Form::kLowRank) {
    possible = possible | Strategies{Strategy::kHierarchical};
  }
  return possible;
}

void check_strategy(Strategy strategy, std::string_view spec, const CodecFacts& codec, int world,
                    int hosts) {
  const Strategies possible = possible_strategies(codec, world, hosts);
  if (possible.has(strategy)) return;
  constexpr std::array<std::string_view, kStrategies.size()> kNeeds = {
      "payloads that can be added (a summable codec)",
      "payloads of fixed size, made block by block",
      "nothing",
      "a codec that sends chosen entries (topk, ternary)",
      "a codec that sends two factors (powersgd)",
      "several hosts with the same number of ranks, more than one, on each, and a codec that takes "
      "parts of a layer (not powersgd)"};
  std::string list;
  for (const Strategy other : kStrategies) {
    if (possible.has(other)) list += concat(list.empty() ? "" : ", ", name_of(other));
  }
  throw InvalidArgument(concat(
      "strategy ", name_of(strategy), " cannot average ", spec, " on ", world, " ranks of ", hosts,
      " hosts: it needs ", kNeeds[static_cast<std::size_t>(strategy)], "; possible are ", list));
}

ReductionChoice select_reduction(const ReductionRequest& request) {
  const CodecFacts& codec = request.codec;
  check(request.bytes >= 0 && codec.payload_bytes >= 0, "sizes must not be negative, got ",
        request.bytes, " bytes of tensor and ", codec.payload_bytes, " of payload");
  check(request.hosts >= 1 && request.world >= request.hosts,
        "a job has at least one host and one rank a host, got ", request.world, " ranks on ",
        request.hosts, " hosts");
  Strategies candidates =
      possible_strategies(codec, request.world, request.hosts) & request.allowed;
  // The sum of everyone's own approximations is not PowerSGD, which approximates the mean: it sends
  // more and trains worse, so that no speed is a reason for it.
  if (candidates.has(Strategy::kLowRank)) candidates = {Strategy::kLowRank};
  const auto bytes = static_cast<double>(request.bytes);
  Terms t = {.tensor = bytes,
             .floats = bytes / static_cast<double>(size_of(request.dtype)) * sizeof(float),
             .payload = static_cast<double>(codec.payload_bytes),
             .world = static_cast<double>(request.world),
             .hosts = static_cast<double>(request.hosts),
             .local = static_cast<double>(request.world) / request.hosts,
             .scatters = codec.traits.fixed_size && codec.block_size > 0,
             .iterations = static_cast<double>(codec.iterations),
             .factors = static_cast<double>(codec.factor_bytes)};
  const BackendLink* link = request.link;
  const auto ranks = static_cast<std::size_t>(request.world);
  ReductionChoice choice;
  choice.uncompressed_cost =
      link ? link->predict(Collective::kAllReduce, uncompressed_bytes(t)) : uncompressed_bytes(t);
  choice.cost = choice.uncompressed_cost;
  // Nothing travels: there is nothing to gain.
  if (request.world == 1 || request.bytes == 0) return choice;
  const double limit = request.required_gain > 0 ? choice.uncompressed_cost / request.required_gain
                                                 : std::numeric_limits<double>::infinity();
  for (const Strategy strategy : kStrategies) {
    if (!candidates.has(strategy)) continue;
    // The time inside a host is known from the pairs alone.
    if (strategy == Strategy::kHierarchical && link && link->pairs.size() != ranks) continue;
    const double cost =
        link ? wire_seconds(strategy, t, *link) + codec_seconds(strategy, t, codec.cost)
             : host_bytes(strategy, t);
    if (cost > limit || (choice.compress && cost >= choice.cost)) continue;
    choice.compress = true;
    choice.strategy = strategy;
    choice.cost = cost;
  }
  return choice;
}

}  // namespace thinwire::comm
