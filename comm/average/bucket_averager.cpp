#include "thinwire/comm/average/bucket_averager.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <xxhash.h>

#include <algorithm>

#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/hierarchical.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/shape.h"

namespace thinwire::comm {
namespace {

// Layouts kept of one bucket: that of the plan, and of the one before it or of warm-up.
constexpr std::size_t kLayoutsKept = 2;

at::Tensor as_tensor(std::span<float> values) {
  return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
}

at::Tensor part_of(const Bucket& bucket, std::size_t i) {
  return bucket.buffer.narrow(0, bucket.layers[i].offset, bucket.layers[i].numel());
}

std::uint64_t mix(std::uint64_t hash, std::uint64_t number) {
  return XXH3_64bits_withSeed(&number, sizeof number, hash);
}

std::uint64_t hash_of(const Bucket& bucket) {
  std::uint64_t hash = mix(bucket.index, static_cast<std::uint64_t>(bucket.buffer.scalar_type()));
  for (const BucketLayer& layer : bucket.layers) {
    hash = XXH3_64bits_withSeed(layer.name.data(), layer.name.size(), hash);
    hash = mix(hash, static_cast<std::uint64_t>(layer.offset));
    for (const std::int64_t extent : layer.shape)
      hash = mix(hash, static_cast<std::uint64_t>(extent));
  }
  return hash;
}

// Of the plan and where its ramps are.
std::uint64_t hash_of(const Bucket& bucket, const Plan& plan, std::int64_t step) {
  std::uint64_t hash = mix(plan.id(), 0);
  for (const BucketLayer& layer : bucket.layers) {
    int stage = 0;
    plan.of(layer.name).codec_at(step, &stage);
    hash = mix(hash, static_cast<std::uint64_t>(stage));
  }
  return hash;
}

}  // namespace

std::uint64_t ring_bytes(std::int64_t bytes, int world) {
  return static_cast<std::uint64_t>(2 * bytes * (world - 1) / world);
}

std::int64_t BucketLayer::numel() const {
  return numel_of(shape);
}

BucketAverager::BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                               AveragerOptions options)
    : group_(std::move(group)), peers_(*group_), options_(std::move(options)) {
  const std::size_t hosts = options_.host_of_rank.size();
  check(hosts == 0 || hosts == static_cast<std::size_t>(group_->getSize()),
        "host_of_rank must name the host of each of ", group_->getSize(), " ranks, got ", hosts);
  if (hosts > 0 && options_.strategy == Strategy::kHierarchical) {
    check_hosts(options_.host_of_rank, group_->getSize());
  }
}
BucketAverager::~BucketAverager() = default;

BucketLayout& BucketAverager::layout_of(const Bucket& bucket, const Plan& plan, std::int64_t step) {
  auto& known = layouts_[hash_of(bucket)];
  const std::uint64_t key = hash_of(bucket, plan, step);
  const auto found =
      std::ranges::find_if(known, [&](const auto& layout) { return layout->key == key; });
  if (found != known.end()) {
    std::rotate(known.begin(), found, found + 1);  // the last one used comes first
    return *known.front();
  }
  // The buffers of a layout that goes out of use are as large as the bucket.
  if (known.size() >= kLayoutsKept) known.pop_back();
  known.insert(known.begin(),
               make_layout(bucket, plan, step, options_, *group_, peers_, residuals_.warm_starts));
  known.front()->key = key;
  return *known.front();
}

// The ranks brought different exchanges: names the difference, on all of them alike.
void BucketAverager::throw_difference(const Bucket& bucket, const BucketLayout& layout) {
  agree_on_text(*group_, concat("bucket/", sequence_),
                concat("the gradients of bucket ", bucket.index), layout.text);
  throw InternalError(concat("the ranks brought different exchanges to #", sequence_,
                             " of equal description: they are out of step"));
}

void BucketAverager::average(Bucket& bucket, const Plan& plan, std::int64_t step) {
  check(bucket.buffer.dim() == 1 && bucket.buffer.is_contiguous() && bucket.buffer.is_cpu(),
        "a bucket must be a contiguous one-dimensional CPU tensor, got shape ",
        bucket.buffer.sizes(), " on ", bucket.buffer.device());
  check(has_codec_dtype(bucket.buffer) || plan.layers().empty(),
        "cannot average gradients of type ", toString(bucket.buffer.scalar_type()));
  for (const BucketLayer& layer : bucket.layers) {
    check(layer.offset >= 0 && layer.offset + layer.numel() <= bucket.buffer.numel(), "layer '",
          layer.name, "' lies outside its bucket: offset ", layer.offset, ", ", layer.numel(),
          " elements, the bucket has ", bucket.buffer.numel());
  }
  ++sequence_;
  // What the ranks agree on stays outside of the guards, for they throw it alike.
  const auto guarded = [&](const auto& action) {
    guard(
        *group_, [&] { return concat("averaging bucket ", bucket.index); }, sequence_, action);
  };
  BucketLayout* layout = nullptr;
  bool same = false;
  guarded([&] {
    layout = &layout_of(bucket, plan, step);
    same = HashAgreement(*group_, sequence_, layout->hash).wait();
  });
  if (!same) throw_difference(bucket, *layout);
  traffic_.dense_bytes +=
      ring_bytes(static_cast<std::int64_t>(bucket.buffer.nbytes()), group_->getSize());
  Refusal refusal;
  bool finite = true;
  guarded([&] {
    if (!layout->dense.empty()) average_dense(bucket, plan, *layout, step);
    finite = average_groups(bucket, plan, *layout, step, refusal);
  });
  const bool check_replicas =
      options_.check_replicas_every > 0 && step % options_.check_replicas_every == 0;
  if (layout->groups.empty() && !check_replicas) return;
  std::uint32_t checksum = 0;
  if (check_replicas) {
    checksum = crc32c(std::as_bytes(std::span(
        static_cast<const char*>(bucket.buffer.const_data_ptr()), bucket.buffer.nbytes())));
  }
  refusal.agree(*group_, sequence_, checksum, concat("step ", step, ", bucket ", bucket.index));
  // The means are the same on all ranks, so all ranks keep or drop this step together.
  if (finite) guarded([&] { commit(bucket, plan, *layout); });
}

void BucketAverager::average_dense(const Bucket& bucket, const Plan& plan,
                                   const BucketLayout& layout, std::int64_t step) {
  // What layers are still owed from steps in which they were compressed.
  std::vector<std::size_t> paid;
  for (const std::size_t i : layout.dense) {
    const BucketLayer& layer = bucket.layers[i];
    if (!residuals_.carries(layer.name)) continue;
    std::vector<float> debt(static_cast<std::size_t>(layer.numel()));
    residuals_.correct(layer.name, debt, plan.of(layer.name), /*compressed=*/false, {},
                       group_->getSize(), step);
    part_of(bucket, i).add_(as_tensor(debt).to(bucket.buffer.scalar_type()));
    paid.push_back(i);
  }
  const auto for_each_packed = [&](auto&& action) {
    std::int64_t at = 0;
    for (const std::size_t i : layout.dense) {
      at::Tensor part = part_of(bucket, i);
      at::Tensor packed = layout.dense_buffer.narrow(0, at, part.numel());
      action(part, packed);
      at += part.numel();
    }
  };
  const bool packed = layout.dense_buffer.defined();
  std::vector<at::Tensor> tensors = {packed ? layout.dense_buffer : bucket.buffer};
  if (packed) for_each_packed([](auto& part, auto& into) { into.copy_(part); });
  if (group_->getSize() > 1) {
    Timeline::Span span(options_.timeline, concat("bucket ", bucket.index), "EXCHANGE",
                        static_cast<std::int64_t>(tensors[0].nbytes()));
    wait(*group_, group_->allreduce(tensors), "all_reduce", sequence_);
  }
  // The one place where an uncompressed gradient is divided by the number of ranks.
  tensors[0].div_(group_->getSize());
  if (packed) for_each_packed([](auto& part, auto& from) { part.copy_(from); });
  traffic_.sent_bytes +=
      ring_bytes(static_cast<std::int64_t>(tensors[0].nbytes()), group_->getSize());
  for (const std::size_t i : paid) {
    if (!at::isfinite(part_of(bucket, i)).all().item<bool>()) continue;
    std::vector<float> none;
    residuals_.commit(bucket.layers[i].name, plan.of(bucket.layers[i].name), /*compressed=*/false,
                      {}, none, /*finite=*/true);
  }
}

// Fills group.values with the gradients and what they are owed.
void BucketAverager::correct(const Bucket& bucket, const Plan& plan, BucketLayout& layout,
                             LayerGroup& group, std::int64_t step) {
  group.values.clear();
  for (const std::size_t i : group.layers) {
    const BucketLayer& layer = bucket.layers[i];
    const LayerSetting& setting = plan.of(layer.name);
    BucketLayout::Layer& own = layout.layers[i];
    at::Tensor part = part_of(bucket, i);
    std::span<float> values(own.converted);
    if (bucket.buffer.scalar_type() == at::kFloat) {
      values = {part.mutable_data_ptr<float>(), static_cast<std::size_t>(part.numel())};
    } else {
      as_tensor(values).copy_(part);
    }
    const bool compressed = own.codec != nullptr;
    const ErrorFeedback::Carried carried = residuals_.correct(
        layer.name, values, setting, compressed, own.owned, group_->getSize(), step);
    own.residual_finite = true;
    const bool keeps = compressed && (setting.uses_feedback() || setting.momentum);
    if (keeps) own.residual.resize(values.size());
    group.values.push_back({.id = own.id,
                            .name = layer.name,
                            .codec = compressed ? own.codec.get() : &identity_codec(),
                            .shape = layer.shape,
                            .values = values,
                            .carried = carried.residual,
                            .carried_factor = carried.factor,
                            .residual = own.residual,
                            .residual_finite = &own.residual_finite,
                            .second = own.owned.empty() ? nullptr : &residuals_.second,
                            .second_decay = Residuals::second_decay(setting, step)});
  }
}

// Whether all means are finite.
bool BucketAverager::average_groups(const Bucket& bucket, const Plan& plan, BucketLayout& layout,
                                    std::int64_t step, Refusal& refusal) {
  ReductionContext context{.peers = &peers_,
                           .refusal = &refusal,
                           .divisor = group_->getSize(),
                           .sequence = sequence_,
                           .step = static_cast<std::uint64_t>(step),
                           .seed = options_.seed,
                           .layout = layout.hash,
                           .timeline = options_.timeline,
                           .track = concat("bucket ", bucket.index)};
  bool finite = true;
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    LayerGroup& group = layout.groups[g];
    correct(bucket, plan, layout, group, step);
    const Averaged averaged = group.reduction->run(context.stage(1000 + g), group.values);
    traffic_.sent_bytes += averaged.sent;
    finite = finite && averaged.finite;
    for (std::size_t n = 0; n < group.layers.size(); ++n) {
      const std::size_t i = group.layers[n];
      if (!layout.layers[i].converted.empty()) {
        part_of(bucket, i).copy_(as_tensor(layout.layers[i].converted));
      }
    }
  }
  return finite;
}

void BucketAverager::commit(const Bucket& bucket, const Plan& plan, BucketLayout& layout) {
  for (LayerGroup& group : layout.groups) {
    group.reduction->commit(group.values);
    for (const std::size_t i : group.layers) {
      BucketLayout::Layer& own = layout.layers[i];
      const std::string& name = bucket.layers[i].name;
      residuals_.commit(name, plan.of(name), own.codec != nullptr, own.owned, own.residual,
                        own.residual_finite);
    }
  }
}

AveragerState BucketAverager::state() const {
  return {.residuals = residuals_.feedback.state(),
          .momentum = residuals_.momentum.state(),
          .second = residuals_.second.state(),
          .warm_starts = residuals_.warm_starts};
}

void BucketAverager::load_state(AveragerState state) {
  residuals_.momentum.load_state(std::move(state.momentum));
  residuals_.feedback.load_state(std::move(state.residuals));
  residuals_.second.load_state(std::move(state.second));
  residuals_.warm_starts = std::move(state.warm_starts);
}

}  // namespace thinwire::comm
