#include "thinwire/comm/average/bucket_layout.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>

#include "thinwire/comm/average/device_plan.h"
#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/gather_reduce.h"
#include "thinwire/comm/average/reduce/hierarchical.h"
#include "thinwire/comm/average/reduce/low_rank.h"
#include "thinwire/comm/average/reduce/scatter_reduce.h"
#include "thinwire/comm/average/reduce/slot_reduce.h"
#include "thinwire/comm/average/reduce/sparse_reduce.h"
#include "thinwire/comm/average/reduce/spectral_reduce.h"
#include "thinwire/comm/average/reduce/summable_reduce.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/powersgd.h"

namespace thinwire::comm {
namespace {

std::uint32_t id_of(std::string_view name) {
  return crc32c(std::as_bytes(std::span(name.data(), name.size())));
}

int hosts_of(const AveragerOptions& options) {
  const std::set<int> hosts(options.host_of_rank.begin(), options.host_of_rank.end());
  return std::max(1, static_cast<int>(hosts.size()));
}

bool hosts_are_even(std::span<const int> host_of_rank) {
  std::map<int, int> ranks;
  for (const int host : host_of_rank) ++ranks[host];
  return std::ranges::all_of(
      ranks, [&](const auto& host) { return host.second == ranks.begin()->second; });
}

// Whether the ranks are numbered host by host: each host's follow one another.
bool hosts_are_blockwise(std::span<const int> host_of_rank) {
  const std::set<int> hosts(host_of_rank.begin(), host_of_rank.end());
  std::size_t blocks = 0;
  for (std::size_t r = 0; r < host_of_rank.size(); ++r) {
    if (r == 0 || host_of_rank[r] != host_of_rank[r - 1]) ++blocks;
  }
  return blocks == hosts.size();
}

// Without a link model. Sparse layers of the bucket share an exchange, so one choice is made for
// them together.
void choose_usual(const Bucket& bucket, int world, std::vector<LayerStrategy>& ways) {
  std::optional<CodecUse> sparse;
  const auto is_sparse = [](const LayerStrategy& way) {
    return way.codec && way.codec->facts().form == CodecFacts::Form::kSparse;
  };
  for (std::size_t i = 0; i < ways.size(); ++i) {
    if (!ways[i].codec) continue;
    const BucketLayer& layer = bucket.layers[i];
    const CodecUse use = use_of(*ways[i].codec, layer.numel(), DType::kFloat32, layer.shape);
    ways[i].strategy = usual_strategy(use, world, kFrameHeaderBytes);
    if (!is_sparse(ways[i])) continue;
    if (sparse) sparse->add_layers(use);
    if (!sparse) sparse = use;
  }
  if (!sparse) return;
  const Strategy together = usual_strategy(*sparse, world, kFrameHeaderBytes);
  for (LayerStrategy& way : ways) {
    if (is_sparse(way)) way.strategy = together;
  }
}

// By the link model: layers with one codec are taken together.
void choose_by_link(const Bucket& bucket, const Plan& plan, const AveragerOptions& options,
                    const std::string& backend, int world, std::vector<LayerStrategy>& ways) {
  std::map<std::string, ReductionRequest> requests;
  std::vector<std::string> specs(ways.size());
  for (std::size_t i = 0; i < ways.size(); ++i) {
    if (!ways[i].codec) continue;
    const BucketLayer& layer = bucket.layers[i];
    const LayerSetting& setting = plan.of(layer.name);
    specs[i] = concat(ways[i].codec->spec(), setting.momentum ? " with momentum" : "",
                      setting.may_be_skipped ? "" : " on any link");
    const CodecUse use =
        use_of(*ways[i].codec, layer.numel(), DType::kFloat32, layer.shape, options.link);
    auto [request, added] = requests.try_emplace(specs[i]);
    if (added) {
      request->second = {.codec = use,
                         .world = world,
                         .hosts = hosts_of(options),
                         .link = &options.link->backend(backend),
                         .required_gain = setting.may_be_skipped ? kRequiredGain : 0};
      // What hierarchical cannot do beside what the codec says, see make_layout() and
      // check_hosts(); and what it costs is known of ranks that are numbered host by host alone.
      if (setting.momentum || !hosts_are_even(options.host_of_rank) ||
          !hosts_are_blockwise(options.host_of_rank)) {
        request->second.allowed = {Strategy::kDense, Strategy::kScatterReduce,
                                   Strategy::kGatherReduce, Strategy::kSparse, Strategy::kLowRank};
      }
    }
    request->second.bytes += layer.numel() * static_cast<std::int64_t>(sizeof(float));
    if (!added) request->second.codec.add_layers(use);
  }
  for (std::size_t i = 0; i < ways.size(); ++i) {
    if (!ways[i].codec) continue;
    const ReductionChoice choice = select_reduction(requests.at(specs[i]));
    ways[i].strategy = choice.strategy;
    if (!choice.compress) ways[i].codec = nullptr;
  }
}

void force(Strategy strategy, const Bucket& bucket, int hosts, int world,
           std::vector<LayerStrategy>& ways) {
  for (std::size_t i = 0; i < ways.size(); ++i) {
    if (!ways[i].codec) continue;
    const BucketLayer& layer = bucket.layers[i];
    const std::string spec = ways[i].codec->spec();
    const CodecUse use = use_of(*ways[i].codec, layer.numel(), DType::kFloat32, layer.shape);
    check_strategy(strategy, concat(spec, " of layer '", layer.name, "'"), use, world, hosts);
    ways[i].strategy = strategy;
  }
}

// In GPU memory there is one way for each codec, and hierarchical where it is asked for.
void choose_for_device(const Bucket& bucket, const Plan& plan, const AveragerOptions& options,
                       int world, std::vector<LayerStrategy>& ways) {
  for (std::size_t i = 0; i < ways.size(); ++i) {
    if (!ways[i].codec) continue;
    check_device_setting(bucket.layers[i].name, plan.of(bucket.layers[i].name));
    ways[i].strategy = device_strategy(*ways[i].codec, options.strategy);
  }
  if (options.strategy == Strategy::kHierarchical) {
    force(*options.strategy, bucket, hosts_of(options), world, ways);
  }
}

// The exchange that layers share.
struct GroupKey {
  Strategy strategy;
  int iterations = 0;      // of low rank
  std::string slots = {};  // the codec, of low rank that of the factors, whose step they share
  auto operator<=>(const GroupKey&) const = default;
};

GroupKey group_of(const LayerStrategy& way) {
  GroupKey key{.strategy = way.strategy};
  const CodecFacts facts = way.codec->facts();
  if (way.strategy == Strategy::kLowRank) {
    key.iterations = facts.iterations;
    if (have_one_step(*facts.factors)) key.slots = facts.factors->spec();
  }
  if (way.strategy == Strategy::kScatterReduce && facts.form == CodecFacts::Form::kSlots) {
    key.slots = way.codec->spec();
  }
  return key;
}

// Uncompressed layers of a bucket travel with others, as they are; on their own only where there
// are none that take them.
GroupKey group_of_uncompressed(const std::set<GroupKey>& groups) {
  for (const Strategy strategy : {Strategy::kHierarchical, Strategy::kScatterReduce}) {
    if (groups.contains({strategy})) return {strategy};
  }
  for (const GroupKey& group : groups) {
    if (group.strategy == Strategy::kLowRank) return group;
  }
  return {Strategy::kScatterReduce};
}

std::unique_ptr<Reduction> make_reduction(const GroupKey& key, const Bucket& bucket,
                                          const std::vector<std::size_t>& indices,
                                          const BucketLayout& layout,
                                          const AveragerOptions& options, c10d::ProcessGroup& group,
                                          const Peers& peers, Residuals& residuals) {
  std::vector<PartitionLayer> layers;
  std::vector<LowRank::Layer> matrices;
  for (const std::size_t i : indices) {
    const Codec* codec = layout.layers[i].codec.get();
    layers.push_back({bucket.layers[i].numel(), codec ? codec : &identity_codec()});
    if (key.strategy != Strategy::kLowRank) continue;
    const CodecFacts facts = codec ? codec->facts() : CodecFacts();
    matrices.push_back({bucket.layers[i].shape, facts.rank, facts.factors.get()});
  }
  const auto chunks = [&] {
    return Partition::chunks_for(layers, peers.size(), options.chunk_bytes);
  };
  switch (key.strategy) {
    case Strategy::kDense:
      return std::make_unique<SummableReduce>(layers, peers, options.chunk_bytes);
    case Strategy::kScatterReduce:
      if (!key.slots.empty() && layers[0].codec->facts().id == CodecId::kSpectral) {
        return std::make_unique<SpectralReduce>(
            layers, peers, chunks(),
            SpectralMemory{residuals.shared_steps, residuals.bases, residuals.second});
      }
      if (!key.slots.empty()) {
        return std::make_unique<SlotReduce>(layers, peers, chunks(), residuals.shared_steps);
      }
      return std::make_unique<ScatterReduce>(layers, peers, chunks());
    case Strategy::kGatherReduce:
      return std::make_unique<GatherReduce>(layers);
    case Strategy::kSparse:
      return std::make_unique<SparseReduce>(layers, peers);
    case Strategy::kLowRank:
      return std::make_unique<LowRank>(
          matrices, key.iterations, peers, options.chunk_bytes,
          LowRankMemory{residuals.warm_starts, residuals.shared_steps});
    case Strategy::kHierarchical:
      return std::make_unique<Hierarchical>(layers, group, options.host_of_rank,
                                            options.chunk_bytes);
  }
  THINWIRE_ASSERT(false);
  return nullptr;
}

}  // namespace

std::vector<LayerStrategy> choose_strategies(const Bucket& bucket, const Plan& plan,
                                             std::int64_t step, const AveragerOptions& options,
                                             const std::string& backend, int world) {
  std::vector<LayerStrategy> ways;
  for (const BucketLayer& layer : bucket.layers) {
    ways.push_back({.codec = plan.of(layer.name).codec_at(step)});
  }
  for (const BucketLayer& layer : bucket.layers) {
    check(options.strategy != Strategy::kHierarchical || !plan.of(layer.name).momentum,
          "strategy hierarchical adds up the gradients of a host before it picks entries, so a "
          "rank cannot tell which of its own were sent: layer '",
          layer.name, "' cannot have momentum correction");
  }
  if (!bucket.buffer.is_cpu()) {
    choose_for_device(bucket, plan, options, world, ways);
  } else if (options.strategy) {
    force(*options.strategy, bucket, hosts_of(options), world, ways);
  } else if (options.link) {
    choose_by_link(bucket, plan, options, backend, world, ways);
  } else {
    choose_usual(bucket, world, ways);
  }
  return ways;
}

at::Tensor gradient_of(const Bucket& bucket, std::size_t i) {
  return bucket.buffer.narrow(0, bucket.layers[i].offset, bucket.layers[i].numel());
}

LayoutText describe(const Bucket& bucket, const Plan& plan, std::int64_t step,
                    const AveragerOptions& options, c10d::ProcessGroup& group) {
  LayoutText made;
  made.strategies =
      choose_strategies(bucket, plan, step, options, backend_name(group), group.getSize());
  made.text = concat("bucket ", bucket.index, " of ", toString(bucket.buffer.scalar_type()),
                     bucket.buffer.is_cpu() ? "" : " in GPU memory", "\n");
  for (std::size_t i = 0; i < bucket.layers.size(); ++i) {
    const BucketLayer& layer = bucket.layers[i];
    const LayerStrategy& way = made.strategies[i];
    made.text += concat(layer.name, " [", at::IntArrayRef(layer.shape), "] at ", layer.offset, ": ",
                        plan.of(layer.name).text());
    if (way.codec) {
      made.text += concat(" as ", way.codec->spec(), " by ", name_of(way.strategy));
    }
    made.text += "\n";
  }
  made.hash = XXH3_64bits(made.text.data(), made.text.size());
  return made;
}

std::shared_ptr<BucketLayout> make_layout(const Bucket& bucket, const Plan& plan, LayoutText text,
                                          const AveragerOptions& options, c10d::ProcessGroup& group,
                                          const Peers& peers, Residuals& residuals) {
  auto layout = std::make_shared<BucketLayout>();
  const std::vector<LayerStrategy>& ways = text.strategies;
  const bool is_float = bucket.buffer.scalar_type() == at::kFloat;
  layout->text = std::move(text.text);
  layout->hash = text.hash;
  layout->compresses =
      std::ranges::any_of(ways, [](const LayerStrategy& way) { return way.codec != nullptr; });

  std::set<GroupKey> keys;
  for (const LayerStrategy& way : ways) {
    if (way.codec) keys.insert(group_of(way));
  }
  std::map<GroupKey, std::vector<std::size_t>> groups;
  layout->layers.resize(ways.size());
  for (std::size_t i = 0; i < ways.size(); ++i) {
    const BucketLayer& layer = bucket.layers[i];
    layout->layers[i].id = id_of(layer.name);
    layout->layers[i].codec = ways[i].codec;
    layout->layers[i].setting = plan.of(layer.name);
    // An all_reduce of the buffer's own type is best where nothing is compressed, and exact where
    // float32 would narrow; else all sums are in rank order on every backend.
    if (!ways[i].codec && !(is_float && layout->compresses)) {
      layout->dense.push_back(i);
    } else {
      groups[ways[i].codec ? group_of(ways[i]) : group_of_uncompressed(keys)].push_back(i);
    }
  }
  for (auto& [key, indices] : groups) {
    LayerGroup& made = layout->groups.emplace_back();
    made.reduction =
        make_reduction(key, bucket, indices, *layout, options, group, peers, residuals);
    for (const std::size_t i : indices) layout->layers[i].in_basis = made.reduction->uses_bases();
    for (const Piece& piece : made.reduction->owned()) {
      BucketLayout::Layer& owner = layout->layers[indices[piece.layer]];
      if (owner.codec && owner.setting.uses_second_residual()) {
        owner.owned.push_back({piece.begin, piece.numel});
      }
    }
    made.layers = std::move(indices);
  }
  for (BucketLayout::Layer& layer : layout->layers) std::ranges::sort(layer.owned);
  return layout;
}

std::size_t BucketLayout::bytes() const {
  std::size_t bytes = sizeof(BucketLayout) + text.capacity();
  for (const Layer& layer : layers) {
    bytes += sizeof(Layer) + layer.owned.capacity() * sizeof(layer.owned[0]);
  }
  // A reduction has a place for each piece of a layer.
  for (const LayerGroup& group : groups) {
    bytes += group.layers.capacity() * sizeof(std::size_t) + group.reduction->bytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
