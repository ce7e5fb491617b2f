#include "thinwire/comm/average/reduce/hierarchical.h"

#include <algorithm>
#include <map>

#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/gather_reduce.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::vector<int> ranks_of_host(std::span<const int> host_of_rank, int host) {
  std::vector<int> ranks;
  for (std::size_t r = 0; r < host_of_rank.size(); ++r) {
    if (host_of_rank[r] == host) ranks.push_back(static_cast<int>(r));
  }
  return ranks;
}

// The ranks that have the number of `rank` on their hosts.
std::vector<int> lane_of(std::span<const int> host_of_rank, int rank) {
  std::map<int, std::vector<int>> by_host;
  for (const int host : host_of_rank) by_host.try_emplace(host, ranks_of_host(host_of_rank, host));
  const auto& mine = by_host[host_of_rank[static_cast<std::size_t>(rank)]];
  const auto number = std::ranges::find(mine, rank) - mine.begin();
  std::vector<int> lane;
  for (const auto& [host, ranks] : by_host) lane.push_back(ranks[static_cast<std::size_t>(number)]);
  std::ranges::sort(lane);
  return lane;
}

std::vector<PartitionLayer> uncompressed(std::span<const PartitionLayer> layers) {
  std::vector<PartitionLayer> copies;
  for (const PartitionLayer& layer : layers) copies.push_back({layer.numel, &identity_codec()});
  return copies;
}

}  // namespace

void check_hosts(std::span<const int> host_of_rank, int world) {
  check(host_of_rank.size() == static_cast<std::size_t>(world),
        "host_of_rank must name the host of each of ", world, " ranks, got ", host_of_rank.size());
  std::map<int, int> ranks;
  for (const int host : host_of_rank) ++ranks[host];
  for (const auto& [host, count] : ranks) {
    check(count == ranks.begin()->second,
          "hierarchical needs equally many ranks on each host: ", "host ", ranks.begin()->first,
          " has ", ranks.begin()->second, ", host ", host, " has ", count);
  }
}

Hierarchical::Hierarchical(std::span<const PartitionLayer> layers, c10d::ProcessGroup& group,
                           std::span<const int> host_of_rank, std::size_t chunk_bytes)
    : host_(group,
            ranks_of_host(host_of_rank, host_of_rank[static_cast<std::size_t>(group.getRank())])),
      lane_(group, lane_of(host_of_rank, group.getRank())) {
  inside_ = std::make_unique<ScatterReduce>(
      uncompressed(layers), host_, Partition::chunks_for(layers, group.getSize(), chunk_bytes),
      Partition::kWholePiece);  // the lane's codecs see them
  inside_->set_sums_hook([this](const ReductionContext& context, int chunk, std::span<float> sums) {
    average_between_hosts(context, chunk, sums);
  });
  // Whether a lane scatters and gathers is decided by all layers, whatever is in its slice: the
  // lanes make their exchanges together.
  const auto scatters = [](const PartitionLayer& layer) { return layer.codec->can_be_cut(); };
  const bool any_scattered = std::ranges::any_of(layers, scatters);
  const bool any_gathered = !std::ranges::all_of(layers, scatters);
  for (int chunk = 0; chunk < inside_->partition().chunks(); ++chunk) {
    LaneReductions between;
    std::vector<PartitionLayer> scattered, gathered;
    const auto& pieces = inside_->partition().slice(chunk, host_.rank()).pieces;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const PartitionLayer& layer = layers[pieces[i].layer];
      (scatters(layer) ? between.scattered : between.gathered).push_back(i);
      (scatters(layer) ? scattered : gathered).push_back({pieces[i].numel, layer.codec});
    }
    if (any_scattered) between.scatter = std::make_unique<ScatterReduce>(scattered, lane_, 1);
    if (any_gathered) between.gather = std::make_unique<GatherReduce>(gathered);
    lane_reductions_.push_back(std::move(between));
  }
}

const Partition& Hierarchical::between(int chunk) const {
  const LaneReductions& between = lane_reductions_[static_cast<std::size_t>(chunk)];
  THINWIRE_ASSERT(between.scatter && !between.gather);
  return static_cast<const ScatterReduce&>(*between.scatter).partition();
}

// Inside the host nothing is lost and nothing divided, so a layer's residual is zero but for the
// slice that this rank's lane encodes.
void Hierarchical::begin() {
  between_ = {};
  whole_.assign(layers_.begin(), layers_.end());
  for (LayerValues& layer : whole_) {
    layer.codec = &identity_codec();
    layer.second = nullptr;
    if (layer.residual.empty() && !layer.carried.empty()) {
      add_carried(layer, 0, layer.values);
      layer.carried = {};
    }
  }
  ReductionContext inside = context_.stage(0);
  inside.peers = &host_;
  inside_->start(inside, whole_);
}

Averaged Hierarchical::receive() {
  Averaged averaged = inside_->receive();
  averaged.add_bytes(between_);
  return averaged;
}

// The layers' parts in this rank's slice: values are the sums of the host.
std::vector<LayerValues> Hierarchical::parts_of(int chunk, const std::vector<std::size_t>& indices,
                                                std::span<float> sums) const {
  const auto& pieces = inside_->partition().slice(chunk, host_.rank()).pieces;
  std::vector<std::size_t> begins;
  std::size_t at = 0;
  for (const Piece& piece : pieces) {
    begins.push_back(at);
    at += static_cast<std::size_t>(piece.numel);
  }
  std::vector<LayerValues> parts;
  for (const std::size_t i : indices) {
    const auto begin = static_cast<std::size_t>(pieces[i].begin);
    const auto numel = static_cast<std::size_t>(pieces[i].numel);
    LayerValues part = layers_[pieces[i].layer];
    part.shape = {};
    part.carried = {};  // in the sums
    part.kept = {};     // what is lost moves there with all else of the layer
    part.values = sums.subspan(begins[i], numel);
    part.residual = part.residual.empty() ? part.residual : part.residual.subspan(begin, numel);
    part.first_element = pieces[i].begin;
    parts.push_back(part);
  }
  return parts;
}

void Hierarchical::average_between_hosts(const ReductionContext& inside, int chunk,
                                         std::span<float> sums) {
  LaneReductions& between = lane_reductions_[static_cast<std::size_t>(chunk)];
  ReductionContext context = inside.stage(1 + static_cast<std::uint64_t>(chunk));
  context.peers = &lane_;
  context.divisor = context_.divisor;
  if (between.scatter) {
    between.scattered_parts = parts_of(chunk, between.scattered, sums);
    between_.add_bytes(between.scatter->run(context, between.scattered_parts));
  }
  if (between.gather) {
    between.gathered_parts = parts_of(chunk, between.gathered, sums);
    between_.add_bytes(between.gather->run(context, between.gathered_parts));
  }
}

void Hierarchical::commit() {
  for (const LaneReductions& between : lane_reductions_) {
    if (between.scatter) between.scatter->commit();
  }
}

std::vector<Piece> Hierarchical::owned() const {
  std::vector<Piece> pieces;
  for (std::size_t chunk = 0; chunk < lane_reductions_.size(); ++chunk) {
    const LaneReductions& between = lane_reductions_[chunk];
    if (!between.scatter) continue;
    const auto& slice = inside_->partition().slice(static_cast<int>(chunk), host_.rank()).pieces;
    for (Piece piece : between.scatter->owned()) {
      const Piece& part = slice[between.scattered[piece.layer]];
      piece.layer = part.layer;
      piece.begin += part.begin;
      pieces.push_back(piece);
    }
  }
  return pieces;
}

}  // namespace thinwire::comm
