#include "thinwire/comm/average/reduction_table.h"

#include <algorithm>
#include <string>
#include <vector>

#include "thinwire/comm/average/reduce/sparse_payloads.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire::comm {
namespace {

// What one rank sends where owners of index ranges add the entries (reduce/sparse_reduce.h), frames
// left out: its entries, and the means of its own range.
struct OwnerTraffic {
  double entry_bytes = 0, mean_bytes = 0;
};

// With second residuals: the owners then send no more means than makes kSparsePayloads of a payload
// in all, nor more than there can be. An entry of a mean is as large as one of a payload.
OwnerTraffic traffic_by_owners(const CodecUse& use, int world) {
  if (use.numel == 0 || use.entries == 0) return {};
  const auto payload = static_cast<double>(use.payload_bytes);
  const double all_means =
      std::min(static_cast<double>(use.numel) * sizeof(float),
               payload / static_cast<double>(use.entries) * static_cast<double>(use.numel));
  const double others = world - 1;
  const double entries = others * payload / world;
  return {entries, std::min(kSparsePayloads * payload - entries, others * all_means / world)};
}

// Terms of the formulas below, all in bytes or ranks.
struct Terms {
  double tensor;   // S
  double floats;   // S in float32, which is what codecs work on
  double payload;  // C
  double frame;
  double world;   // W
  double parts;   // of what is cut between ranks, W at most
  double others;  // W − 1
  double hosts;   // H
  double local;   // ranks a host
  bool cut;       // Codec::can_be_cut()
  // Of low rank: rounds of its two means, and what of C travels in each.
  double iterations;
  double factors;
  // Of codecs that send chosen entries, where owners add them.
  OwnerTraffic owners;
  CodecCost cost;
};

Terms terms_of(const CodecUse& use, const ReductionPlace& place) {
  return {.tensor = place.tensor_bytes,
          .floats = static_cast<double>(use.numel) * sizeof(float),
          .payload = static_cast<double>(use.payload_bytes),
          .frame = place.frame_bytes,
          .world = static_cast<double>(place.world),
          .parts = use.owners(place.world),
          .others = static_cast<double>(place.world - 1),
          .hosts = static_cast<double>(place.hosts),
          .local = static_cast<double>(place.world) / place.hosts,
          .cut = use.can_be_cut,
          .iterations = static_cast<double>(use.facts.iterations),
          .factors = static_cast<double>(use.factor_bytes),
          .owners = traffic_by_owners(use, place.world),
          .cost = use.cost};
}

// Two ways, to the owners of parts and back from them: 2 (W − 1) / W of the bytes.
double sent_there_and_back(double bytes, const Terms& t) {
  return 2 * t.others * bytes / t.world;
}
double seconds_there_and_back(double sent, const BackendLink& link) {
  return 2 * link.predict(Collective::kAllToAll, sent / 2);
}

// Bytes between the hosts, for the one rank of each host that speaks for all.
double leader_bytes(const Terms& t) {
  const double others = t.hosts - 1;
  return t.cut ? 2 * others * (t.payload / t.hosts + t.frame) : others * (t.payload + t.frame);
}

// A rank encodes its values and decodes what it gets; owners do so for their part once more.
double owners_coding(const Terms& t) {
  const CodecCost& c = t.cost;
  return t.floats * (c.compress + c.accumulate + c.compress / t.world + c.decompress);
}
double own_coding(const Terms& t) {
  return t.floats * (t.cost.compress + t.cost.decompress);
}

struct Row {
  Strategy strategy;
  std::string_view name;
  // Which codecs it takes, on how many ranks of how many hosts; and in words.
  bool (*takes)(const CodecUse&, int world, int hosts);
  std::string_view needs;
  // Bytes that one rank sends, seconds of its messages, seconds of coding.
  double (*sent)(const Terms&);
  double (*seconds)(const Terms&, double sent, const BackendLink&);
  double (*coding)(const Terms&);
};

using Form = CodecFacts::Form;

constexpr std::array kTable = {
    Row{.strategy = Strategy::kDense,
        .name = "dense",
        .takes = [](const CodecUse& use, int, int) { return use.summable; },
        .needs = "payloads that can be added (a summable codec)",
        .sent = [](const Terms& t) { return sent_there_and_back(t.payload, t); },
        .seconds = [](const Terms&, double sent,
                      const BackendLink& link) { return seconds_there_and_back(sent, link); },
        .coding = own_coding},
    Row{.strategy = Strategy::kScatterReduce,
        .name = "scatter_reduce",
        .takes = [](const CodecUse& use, int,
                    int) { return use.can_be_cut || use.facts.form == Form::kSlots; },
        .needs = "payloads of fixed size, made block by block, or slots (ecsq, spectral)",
        .sent =
            [](const Terms& t) { return sent_there_and_back(t.payload + t.parts * t.frame, t); },
        .seconds = [](const Terms&, double sent,
                      const BackendLink& link) { return seconds_there_and_back(sent, link); },
        .coding = owners_coding},
    Row{.strategy = Strategy::kGatherReduce,
        .name = "gather_reduce",
        .takes = [](const CodecUse&, int, int) { return true; },
        .needs = "nothing",
        .sent = [](const Terms& t) { return t.others * (t.payload + t.frame); },
        .seconds =
            [](const Terms&, double sent, const BackendLink& link) {
              // The sizes travel first, then the frames, which are about as long on all ranks.
              return link.of(Collective::kAllGather).alpha +
                     link.predict(Collective::kAllGather, sent);
            },
        .coding =
            [](const Terms& t) {
              // The first payload is written over everything, the others are added.
              return own_coding(t) + t.floats * t.others * t.cost.accumulate;
            }},
    Row{.strategy = Strategy::kSparse,
        .name = "sparse",
        .takes = [](const CodecUse& use, int, int) { return use.facts.form == Form::kSparse; },
        .needs = "a codec that sends chosen entries (topk, ternary)",
        .sent =
            [](const Terms& t) {
              return t.owners.entry_bytes + t.owners.mean_bytes + 2 * t.others * t.frame;
            },
        .seconds =
            [](const Terms& t, double, const BackendLink& link) {
              return link.of(Collective::kAllGather).alpha +
                     link.predict(Collective::kAllToAll,
                                  t.owners.entry_bytes + t.others * t.frame) +
                     link.predict(Collective::kAllGather, t.owners.mean_bytes + t.others * t.frame);
            },
        .coding = owners_coding},
    Row{.strategy = Strategy::kLowRank,
        .name = "low_rank",
        .takes = [](const CodecUse& use, int, int) { return use.facts.form == Form::kLowRank; },
        .needs = "a codec that sends two factors (powersgd)",
        .sent =
            [](const Terms& t) {
              return sent_there_and_back(t.payload + (t.iterations - 1) * t.factors, t);
            },
        .seconds =
            [](const Terms& t, double sent, const BackendLink& link) {
              const double means = 2 * t.iterations;
              return means * seconds_there_and_back(sent / means, link);
            },
        .coding = own_coding},
    Row{.strategy = Strategy::kHierarchical,
        .name = "hierarchical",
        .takes =
            [](const CodecUse& use, int world, int hosts) {
              // It cuts layers between the ranks of a host, and low rank needs whole matrices.
              return hosts > 1 && world > hosts && world % hosts == 0 &&
                     use.facts.form != Form::kLowRank && use.facts.form != Form::kSlots;
            },
        .needs = "several hosts with the same number of ranks, more than one, on each, and a codec "
                 "that takes parts of a layer (neither powersgd nor ecsq nor spectral)",
        .sent = [](const Terms&) { return 0.0; },
        .seconds =
            [](const Terms& t, double, const BackendLink& link) {
              const AlphaBeta& inside = link.pairs[0][1];
              const AlphaBeta& between = link.pairs[0][static_cast<std::size_t>(t.local)];
              const double ring = 2 * (t.local - 1) * inside.alpha +
                                  2 * (t.local - 1) / t.local * t.tensor * inside.beta;
              return ring + (t.cut ? 2 : 1) * between.alpha + leader_bytes(t) * between.beta +
                     inside.predict(t.tensor);
            },
        .coding =
            [](const Terms& t) {
              const CodecCost& c = t.cost;
              return t.floats * (c.compress + (t.cut ? 1 : t.hosts) * c.accumulate +
                                 c.compress / t.hosts + c.decompress);
            }},
};
static_assert(kTable.size() == kStrategies.size());

const Row& row_of(Strategy strategy) {
  return kTable[static_cast<std::size_t>(strategy)];
}

}  // namespace

std::string_view name_of(Strategy strategy) {
  THINWIRE_ASSERT(row_of(strategy).strategy == strategy);
  return row_of(strategy).name;
}

Strategy parse_strategy(std::string_view name) {
  std::vector<std::string> known;
  std::string list;
  for (const Row& row : kTable) {
    if (row.name == name) return row.strategy;
    known.emplace_back(row.name);
    list += (list.empty() ? "" : ", ") + known.back();
  }
  const std::string near = nearest_name(name, known);
  throw InvalidArgument(concat("unknown strategy '", name, "', known are ", list,
                               near.empty() ? "" : concat("; did you mean ", near, "?")));
}

void CodecUse::add_layers(const CodecUse& other) {
  numel += other.numel;
  payload_bytes += other.payload_bytes;
  entries += other.entries;
  factor_bytes += other.factor_bytes;
  blocks += other.blocks;
}

double CodecUse::owners(int world) const {
  return static_cast<double>(blocks > 0 ? std::min<std::int64_t>(blocks, world) : world);
}

CodecUse use_of(const Codec& codec, std::int64_t numel, DType dtype,
                std::span<const std::int64_t> shape, const LinkModel* link) {
  CodecUse use = {.facts = codec.facts(),
                  .summable = codec.traits().summable,
                  .can_be_cut = codec.can_be_cut(),
                  .numel = numel};
  use.payload_bytes = static_cast<std::int64_t>(codec.max_compressed_bytes(numel, dtype));
  if (use.can_be_cut) use.blocks = (numel + codec.block_size() - 1) / codec.block_size();
  if (use.facts.density) use.entries = kept_count(*use.facts.density, numel);
  if (use.facts.form == Form::kSparse) {
    const auto floats = static_cast<double>(std::max<std::int64_t>(numel, 1)) * sizeof(float);
    use.cost.accumulate *= std::min(1.0, static_cast<double>(use.payload_bytes) / floats);
  }
  if (use.facts.form == Form::kLowRank) {
    const LowRankShape low_rank = low_rank_shape(shape, dtype, use.facts.rank);
    if (low_rank.rank > 0) {
      use.factor_bytes = static_cast<std::int64_t>(factor_bytes(low_rank, *use.facts.factors));
      use.payload_bytes = use.factor_bytes;
    }
  }
  if (link != nullptr) {
    if (const CodecCost* cost = link->codec(codec.spec())) use.cost = *cost;
  }
  return use;
}

Strategies possible_strategies(const CodecUse& use, int world, int hosts) {
  Strategies possible = {};
  for (const Row& row : kTable) {
    if (row.takes(use, world, hosts)) possible.add(row.strategy);
  }
  return possible;
}

void check_strategy(Strategy strategy, std::string_view spec, const CodecUse& use, int world,
                    int hosts) {
  if (row_of(strategy).takes(use, world, hosts)) return;
  std::string list;
  for (const Row& row : kTable) {
    if (row.takes(use, world, hosts)) list += concat(list.empty() ? "" : ", ", row.name);
  }
  throw InvalidArgument(concat("strategy ", name_of(strategy), " cannot average ", spec, " on ",
                               world, " ranks of ", hosts, " hosts: it needs ",
                               row_of(strategy).needs, "; possible are ", list));
}

double sent_bytes(Strategy strategy, const CodecUse& use, const ReductionPlace& place) {
  return row_of(strategy).sent(terms_of(use, place));
}

double host_bytes(Strategy strategy, const CodecUse& use, const ReductionPlace& place) {
  const Terms t = terms_of(use, place);
  if (strategy == Strategy::kHierarchical) return leader_bytes(t);
  const double bytes = row_of(strategy).sent(t);
  if (t.hosts == 1 || t.local == 1) return bytes;
  // Messages from each rank to each.
  return t.local * bytes * (t.world - t.local) / t.others;
}

double message_seconds(Strategy strategy, const CodecUse& use, const ReductionPlace& place,
                       const BackendLink& link) {
  const Terms t = terms_of(use, place);
  return row_of(strategy).seconds(t, row_of(strategy).sent(t), link);
}

double coding_seconds(Strategy strategy, const CodecUse& use, const ReductionPlace& place) {
  return row_of(strategy).coding(terms_of(use, place));
}

double uncompressed_bytes(const ReductionPlace& place) {
  return 2.0 * (place.world - 1) / place.world * place.tensor_bytes;
}

}  // namespace thinwire::comm
