#include "thinwire/comm/average/reduce/summable_reduce.h"

#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

std::vector<std::size_t> payload_floats(std::span<const PartitionLayer> layers) {
  std::vector<std::size_t> floats;
  for (const PartitionLayer& layer : layers) {
    const std::size_t bytes = layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32);
    THINWIRE_ASSERT(layer.codec->traits().summable && layer.codec->traits().fixed_size &&
                    bytes % sizeof(float) == 0);
    floats.push_back(bytes / sizeof(float));
  }
  return floats;
}

}  // namespace

SummableReduce::SummableReduce(std::span<const PartitionLayer> layers, const Peers& peers,
                               std::size_t chunk_bytes)
    : floats_(payload_floats(layers)),
      payload_(std::accumulate(floats_.begin(), floats_.end(), std::size_t{0})),
      mean_(static_cast<std::int64_t>(payload_.size()), peers, chunk_bytes) {}

Averaged SummableReduce::run(const ReductionContext& context, std::span<const LayerValues> layers) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Timeline::Span span(context.timeline, context.track, "COMPRESS");
    const auto part = std::as_writable_bytes(std::span(payload_).subspan(at, floats_[i]));
    const auto bytes = encode_piece(context, layers[i], 0,
                                    static_cast<std::int64_t>(layers[i].values.size()), part);
    THINWIRE_ASSERT(bytes == part.size());
    at += floats_[i];
  }
  Averaged averaged{.sent = mean_.run(context, payload_)};
  if (context.refusal->any()) return averaged;
  at = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Timeline::Span span(context.timeline, context.track, "DECOMPRESS");
    TensorView output = view_of(layers[i].values);
    output.shape = layers[i].shape;
    layers[i].codec->decompress(std::as_bytes(std::span(payload_).subspan(at, floats_[i])),
                                random_key(context, layers[i], /*peer=*/0, /*stage=*/0, 0), output,
                                WriteMode::kAssign);
    averaged.finite = averaged.finite && kernels::all_finite(layers[i].values);
    at += floats_[i];
  }
  return averaged;
}

}  // namespace thinwire::comm
