#include "thinwire/comm/average/reduce/summable_reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "thinwire/common/error.h"

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
      total_(std::accumulate(floats_.begin(), floats_.end(), std::size_t{0})),
      mean_(static_cast<std::int64_t>(total_), peers, chunk_bytes) {}

void SummableReduce::begin() {
  payload_ = context_.workspace->arena.floats(total_);
  std::size_t at = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    PhaseSpan span(context_, Phase::kCompress);
    const auto part = std::as_writable_bytes(payload_.subspan(at, floats_[i]));
    const auto bytes = encode_piece(context_, layers_[i], 0,
                                    static_cast<std::int64_t>(layers_[i].values.size()), part);
    THINWIRE_ASSERT(bytes == part.size());
    at += floats_[i];
  }
  mean_.start(context_, payload_);
}

Averaged SummableReduce::receive() {
  Averaged averaged = mean_.finish();
  // A codec may scale what it decodes, by at most the number of elements.
  for (std::size_t i = 0, at = 0; i < layers_.size(); at += floats_[i++]) {
    const float most =
        std::numeric_limits<float>::max() / static_cast<float>(layers_[i].values.size() + 1);
    averaged.finite = averaged.finite &&
                      std::ranges::all_of(payload_.subspan(at, floats_[i]),
                                          [most](float value) { return std::fabs(value) <= most; });
  }
  return averaged;
}

void SummableReduce::deliver(bool keep) {
  PhaseSpan span(context_, Phase::kDecompress);
  std::size_t at = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const LayerValues& layer = layers_[i];
    if (keep) keep_residual(layer);
    TensorView output = view_of(layer.values);
    output.shape = layer.shape;
    layer.codec->decompress(std::as_bytes(payload_.subspan(at, floats_[i])),
                            random_key(context_, layer, /*peer=*/0, /*stage=*/0, 0), output,
                            WriteMode::kAssign);
    at += floats_[i];
  }
}

}  // namespace thinwire::comm
