#include "thinwire/comm/reductions/bucket_averager.h"

#include <ATen/ops/empty.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "thinwire/comm/agreement.h"
#include "thinwire/comm/failure.h"
#include "thinwire/comm/reductions/exchange.h"
#include "thinwire/comm/reductions/gather_reduce.h"
#include "thinwire/comm/reductions/scatter_reduce.h"
#include "thinwire/comm/tensor_bridge.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/compressors/codec_table.h"

namespace thinwire::comm {
namespace {

std::uint32_t id_of(std::string_view name) {
  return crc32c(std::as_bytes(std::span(name.data(), name.size())));
}

std::string describe(const Bucket& bucket, const Plan& plan) {
  std::string text =
      concat("bucket ", bucket.index, " of ", toString(bucket.buffer.scalar_type()), "\n");
  for (const BucketLayer& layer : bucket.layers) {
    text += concat(layer.name, " [", at::IntArrayRef(layer.shape), "] at ", layer.offset, ": ",
                   plan.of(layer.name).text(), "\n");
  }
  return text;
}

// By bits and without branches, so that it runs at the speed of memory.
bool all_finite(std::span<const float> values) {
  std::uint32_t largest = 0;
  for (const float value : values) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu);
  }
  return largest < 0x7F800000u;
}

// Uncompressed layers that share a bucket with compressed ones travel in their scatter_reduce.
const Codec& codec_of(const LayerSetting& setting) {
  static const CodecPtr kIdentity = make_codec("identity");
  return setting.codec ? *setting.codec : *kIdentity;
}

// A ring all-reduce: every rank sends all but its own part, twice.
std::uint64_t ring_bytes(std::int64_t bytes, int world) {
  return static_cast<std::uint64_t>(2 * bytes * (world - 1) / world);
}

}  // namespace

std::int64_t BucketLayer::numel() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// What is derived once from the layers and settings of a bucket.
struct BucketAverager::Layout {
  std::string text;
  std::uint64_t hash = 0;
  std::vector<std::size_t> dense, scatter, gather;  // indices of layers, by reduction
  std::int64_t dense_numel = 0;
  at::Tensor dense_buffer;  // defined where the dense layers are not the whole bucket

  std::vector<std::vector<float>> converted;  // by layer: float32 copy, where the buffer is not
  std::vector<std::vector<float>> residuals;  // by layer: the new residual, until it is committed
  std::unique_ptr<ScatterReduce> scatter_reduce;
  std::unique_ptr<GatherReduce> gather_reduce;
};

BucketAverager::BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                               AveragerOptions options)
    : group_(std::move(group)), options_(options) {}
BucketAverager::~BucketAverager() = default;

BucketAverager::Layout& BucketAverager::layout_of(const Bucket& bucket, const Plan& plan) {
  std::string text = describe(bucket, plan);
  auto& slot = layouts_[text];
  if (slot) return *slot;

  slot = std::make_unique<Layout>();
  Layout& layout = *slot;
  layout.text = std::move(text);
  layout.hash = XXH3_64bits(layout.text.data(), layout.text.size());
  layout.converted.resize(bucket.layers.size());
  layout.residuals.resize(bucket.layers.size());
  const bool is_float = bucket.buffer.scalar_type() == at::kFloat;
  std::vector<PartitionLayer> scattered;
  std::vector<LayerValues> gathered;
  for (std::size_t i = 0; i < bucket.layers.size(); ++i) {
    const BucketLayer& layer = bucket.layers[i];
    const LayerSetting& setting = plan.of(layer.name);
    const auto numel = static_cast<std::size_t>(layer.numel());
    if (!setting.codec && !(is_float && plan.compresses())) {
      layout.dense.push_back(i);
      layout.dense_numel += layer.numel();
      continue;
    }
    const Codec& codec = codec_of(setting);
    if (!is_float) layout.converted[i].resize(numel);
    if (setting.uses_feedback()) layout.residuals[i].resize(numel);
    if (codec.traits().fixed_size && codec.block_size() > 0) {
      layout.scatter.push_back(i);
      scattered.push_back({layer.numel(), &codec});
    } else {
      layout.gather.push_back(i);
      LayerValues values;
      values.codec = &codec;
      values.values = std::span<float>(static_cast<float*>(nullptr), numel);
      gathered.push_back(values);
    }
  }
  if (layout.dense_numel > 0 && layout.dense.size() < bucket.layers.size()) {
    layout.dense_buffer = at::empty({layout.dense_numel}, bucket.buffer.options());
  }
  const int rank = group_->getRank();
  const int world = group_->getSize();
  if (!scattered.empty()) {
    layout.scatter_reduce =
        std::make_unique<ScatterReduce>(scattered, rank, world, options_.chunk_bytes);
  }
  if (!gathered.empty())
    layout.gather_reduce = std::make_unique<GatherReduce>(gathered, rank, world);
  return layout;
}

void BucketAverager::check_same_everywhere(const Bucket& bucket, const Layout& layout) {
  HashAgreement agreement(*group_, sequence_, layout.hash);
  if (agreement.wait()) return;
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
  Layout& layout = layout_of(bucket, plan);
  check_same_everywhere(bucket, layout);
  wire_use_.dense_bytes +=
      ring_bytes(static_cast<std::int64_t>(bucket.buffer.nbytes()), group_->getSize());
  if (!layout.dense.empty()) average_dense(bucket, layout);
  if (layout.scatter_reduce || layout.gather_reduce) average_compressed(bucket, plan, layout, step);
  if (options_.check_replicas_every > 0 && step % options_.check_replicas_every == 0) {
    check_replicas(bucket, step);
  }
}

void BucketAverager::average_dense(const Bucket& bucket, const Layout& layout) {
  const auto part_of = [&](std::size_t i) {
    return bucket.buffer.narrow(0, bucket.layers[i].offset, bucket.layers[i].numel());
  };
  const auto for_each_packed = [&](auto&& action) {
    std::int64_t at = 0;
    for (const std::size_t i : layout.dense) {
      at::Tensor part = part_of(i);
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
  wire_use_.sent_bytes +=
      ring_bytes(static_cast<std::int64_t>(tensors[0].nbytes()), group_->getSize());
}

void BucketAverager::average_compressed(const Bucket& bucket, const Plan& plan, Layout& layout,
                                        std::int64_t step) {
  const bool is_float = bucket.buffer.scalar_type() == at::kFloat;
  const auto part_of = [&](std::size_t i) {
    return bucket.buffer.narrow(0, bucket.layers[i].offset, bucket.layers[i].numel());
  };
  const auto as_tensor = [](std::vector<float>& values) {
    return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
  };
  const auto values_of = [&](const std::vector<std::size_t>& indices) {
    std::vector<LayerValues> layers;
    for (const std::size_t i : indices) {
      const BucketLayer& layer = bucket.layers[i];
      at::Tensor part = part_of(i);
      std::span<float> values(layout.converted[i]);
      if (is_float) {
        values = {part.mutable_data_ptr<float>(), static_cast<std::size_t>(part.numel())};
      } else {
        as_tensor(layout.converted[i]).copy_(part);
      }
      const LayerSetting& setting = plan.of(layer.name);
      if (setting.uses_feedback()) feedback_.correct(layer.name, values, setting.feedback, step);
      layers.push_back({.id = id_of(layer.name),
                        .codec = &codec_of(setting),
                        .shape = layer.shape,
                        .values = values,
                        .residual = layout.residuals[i]});
    }
    return layers;
  };
  const Exchange exchange{.group = *group_,
                          .sequence = sequence_,
                          .step = static_cast<std::uint64_t>(step),
                          .seed = options_.seed,
                          .layout = layout.hash,
                          .timeline = options_.timeline,
                          .track = concat("bucket ", bucket.index)};
  bool finite = true;
  if (layout.scatter_reduce) {
    const auto layers = values_of(layout.scatter);
    layout.scatter_reduce->run(exchange, layers);
    wire_use_.sent_bytes += layout.scatter_reduce->wire_bytes();
    for (const LayerValues& layer : layers) finite = finite && all_finite(layer.values);
  }
  if (layout.gather_reduce) {
    const auto layers = values_of(layout.gather);
    wire_use_.sent_bytes += layout.gather_reduce->run(exchange, layers);
    for (const LayerValues& layer : layers) finite = finite && all_finite(layer.values);
  }
  for (std::size_t i = 0; i < bucket.layers.size(); ++i) {
    if (!is_float && !layout.converted[i].empty()) {
      part_of(i).copy_(as_tensor(layout.converted[i]));
    }
    // The mean is the same on all ranks, so all ranks keep or drop their residuals together.
    if (finite && !layout.residuals[i].empty()) {
      feedback_.commit(bucket.layers[i].name, layout.residuals[i]);
    }
  }
}

void BucketAverager::check_replicas(const Bucket& bucket, std::int64_t step) {
  const auto bytes = std::as_bytes(
      std::span(static_cast<const char*>(bucket.buffer.const_data_ptr()), bucket.buffer.nbytes()));
  const std::uint32_t checksum = crc32c(bytes);
  HashAgreement agreement(*group_, sequence_, checksum);
  if (agreement.wait()) return;
  throw InternalError(concat("step ", step, ", bucket ", bucket.index,
                             ": the averaged gradients are not bit-equal on all ranks; this rank's "
                             "CRC-32C is ",
                             checksum));
}

}  // namespace thinwire::comm
