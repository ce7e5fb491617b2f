#include "thinwire/comm/link/link_model.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "thinwire/common/error.h"
#include "thinwire/common/json.h"
#include "thinwire/common/median.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/plan_file.h"

namespace thinwire::comm {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "thinwire.link";
constexpr std::uint64_t kVersion = 1;
// More ranks than anybody has; keeps a damaged file from asking for all memory.
constexpr std::uint64_t kMostRanks = 1 << 16;

Json json_of(const AlphaBeta& cost) {
  return {{"alpha", cost.alpha}, {"beta", cost.beta}};
}

AlphaBeta read_cost(const JsonPlace& place) {
  place.expect_fields({"alpha", "beta"});
  return {place.at("alpha").number(), place.at("beta").number()};
}

Json json_of(const BackendLink& link) {
  Json collectives;
  for (const Collective collective : kCollectives) {
    collectives[std::string(name_of(collective))] = json_of(link.of(collective));
  }
  Json pairs = Json::array();
  for (const auto& row : link.pairs) {
    Json costs = Json::array();
    for (const AlphaBeta& cost : row) costs.push_back(json_of(cost));
    pairs.push_back(std::move(costs));
  }
  return {{"collectives", std::move(collectives)}, {"pairs", std::move(pairs)}};
}

BackendLink read_backend(const JsonPlace& place, std::size_t world) {
  place.expect_fields({"collectives", "pairs"});
  BackendLink link;
  const JsonPlace collectives = place.at("collectives");
  collectives.expect_fields({"all_reduce", "all_to_all", "all_gather", "broadcast"});
  for (const Collective collective : kCollectives) {
    link.collectives[static_cast<std::size_t>(collective)] =
        read_cost(collectives.at(std::string(name_of(collective))));
  }
  const JsonPlace pairs = place.at("pairs");
  if (pairs.size() != 0 && pairs.size() != world) {
    pairs.fail(
        concat("expected no rows or one for each of ", world, " ranks, found ", pairs.size()));
  }
  for (std::size_t from = 0; from < pairs.size(); ++from) {
    const JsonPlace row = pairs.at(from);
    if (row.size() != world) row.fail(concat("expected ", world, " ranks, found ", row.size()));
    std::vector<AlphaBeta>& costs = link.pairs.emplace_back();
    for (std::size_t to = 0; to < world; ++to) costs.push_back(read_cost(row.at(to)));
  }
  return link;
}

std::string read_spec(const JsonPlace& place) {
  try {
    return Spec::parse(place.text()).str();
  } catch (const InvalidArgument& error) {
    place.fail(error.what());
  }
}

}  // namespace

std::string_view name_of(Collective collective) {
  constexpr std::array<std::string_view, kCollectives.size()> kNames = {"all_reduce", "all_to_all",
                                                                        "all_gather", "broadcast"};
  return kNames[static_cast<std::size_t>(collective)];
}

double sent_bytes(Collective collective, double tensor_bytes, int world) {
  const double others = world - 1;
  switch (collective) {
    case Collective::kAllReduce:
      return 2 * others / world * tensor_bytes;
    case Collective::kAllToAll:
      return others / world * tensor_bytes;
    case Collective::kAllGather:
      return others * tensor_bytes;
    case Collective::kBroadcast:
      return others > 0 ? tensor_bytes : 0;
  }
  return 0;
}

const BackendLink& LinkModel::backend(const std::string& name) const {
  const auto found = backends.find(name);
  if (found != backends.end()) return found->second;
  std::string known;
  for (const auto& [other, ignored] : backends) known += (known.empty() ? "" : ", ") + other;
  throw InvalidArgument(concat("the link model has no backend '", name, "', it has ",
                               known.empty() ? "none" : known));
}

const CodecCost* LinkModel::codec(const std::string& spec) const {
  const auto found = codecs.find(spec);
  return found == codecs.end() ? nullptr : &found->second;
}

int LinkModel::host_count() const {
  return static_cast<int>(std::set<std::string>(hosts.begin(), hosts.end()).size());
}

AlphaBeta fit_alpha_beta(std::span<const TimedCall> calls) {
  check(!calls.empty(), "a fit needs at least one timed call");
  std::map<double, std::vector<double>> by_size;
  for (const TimedCall& call : calls) {
    check(call.bytes >= 0 && std::isfinite(call.bytes) && call.seconds > 0 &&
              std::isfinite(call.seconds),
          "a timed call needs bytes of at least 0 and a time above 0, got ", call.bytes,
          " bytes in ", call.seconds, " s");
    by_size[call.bytes].push_back(call.seconds);
  }
  // Sums over the sizes of w, w b, w b², w t, w b t with w = 1 / t².
  double w = 0, wb = 0, wbb = 0, wt = 0, wbt = 0;
  for (const auto& [bytes, seconds] : by_size) {
    const double t = median(seconds);
    const double weight = 1 / (t * t);
    w += weight;
    wb += weight * bytes;
    wbb += weight * bytes * bytes;
    wt += weight * t;
    wbt += weight * bytes * t;
  }
  const AlphaBeta latency_alone = {wt / w, 0};
  const AlphaBeta bandwidth_alone = {0, wbb > 0 ? wbt / wbb : 0};
  if (by_size.size() == 1) return wbb > 0 ? bandwidth_alone : latency_alone;
  const double determinant = w * wbb - wb * wb;
  const AlphaBeta both = {(wt * wbb - wbt * wb) / determinant, (w * wbt - wb * wt) / determinant};
  if (both.beta < 0) return latency_alone;
  if (both.alpha < 0) return bandwidth_alone;
  return both;
}

std::string to_json(const LinkModel& model) {
  Json backends = Json::object();
  for (const auto& [name, link] : model.backends) backends[name] = json_of(link);
  Json codecs = Json::array();
  for (const auto& [spec, cost] : model.codecs) {
    codecs.push_back({{"spec", spec},
                      {"compress", cost.compress},
                      {"decompress", cost.decompress},
                      {"accumulate", cost.accumulate}});
  }
  const Json document = {{"format", kFormat},    {"version", kVersion},  {"world", model.world},
                         {"hosts", model.hosts}, {"backends", backends}, {"codecs", codecs}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

LinkModel parse_link_model(std::string_view text, const std::string& source) {
  const nlohmann::json document = parse_json(text, source);
  const JsonPlace root(document, source);
  root.expect_fields({"format", "version", "world", "hosts", "backends", "codecs"});
  if (root.at("format").text() != kFormat) {
    root.at("format").fail(
        concat("expected '", kFormat, "', found '", root.at("format").text(), "'"));
  }
  if (root.at("version").whole() != kVersion) {
    root.at("version").fail(concat("expected ", kVersion, ", found ", root.at("version").whole()));
  }
  LinkModel model;
  const std::uint64_t world = root.at("world").whole();
  if (world < 1 || world > kMostRanks) {
    root.at("world").fail(concat("expected 1 to ", kMostRanks, " ranks, found ", world));
  }
  model.world = static_cast<int>(world);
  const JsonPlace hosts = root.at("hosts");
  if (hosts.size() != world) {
    hosts.fail(concat("expected the hosts of ", world, " ranks, found ", hosts.size()));
  }
  for (std::size_t r = 0; r < world; ++r) model.hosts.push_back(hosts.at(r).text());
  const JsonPlace backends = root.at("backends");
  backends.expect_fields({"gloo", "mpi", "nccl"});
  for (const char* name : {"gloo", "mpi", "nccl"}) {
    if (backends.has(name)) model.backends[name] = read_backend(backends.at(name), world);
  }
  const JsonPlace codecs = root.at("codecs");
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    const JsonPlace place = codecs.at(i);
    place.expect_fields({"spec", "compress", "decompress", "accumulate"});
    const CodecCost cost = {place.at("compress").number(), place.at("decompress").number(),
                            place.at("accumulate").number()};
    const std::string spec = read_spec(place.at("spec"));
    if (!model.codecs.emplace(spec, cost).second) {
      place.at("spec").fail(concat("'", spec, "' occurs twice"));
    }
  }
  return model;
}

LinkModel read_link_model(const std::string& path) {
  return parse_link_model(lgreco::read_text_file(path), path);
}

void write_link_model(const LinkModel& model, const std::string& path) {
  lgreco::write_text_file(path, to_json(model));
}

}  // namespace thinwire::comm
