#include "thinwire/comm/reductions/exchange.h"

namespace thinwire::comm {

RandomKey random_key(const Exchange& exchange, std::uint32_t layer_id, int rank,
                     std::uint32_t stage, std::int64_t first_element) {
  return {.seed = exchange.seed,
          .step = exchange.step,
          .layer = layer_id,
          .rank = static_cast<std::uint32_t>(rank),
          .stage = stage,
          .first_element = static_cast<std::uint64_t>(first_element)};
}

std::size_t encode_piece(const Exchange& exchange, const LayerValues& layer, std::int64_t begin,
                         std::int64_t numel, std::span<std::byte> out) {
  const auto first = static_cast<std::size_t>(begin);
  const auto count = static_cast<std::size_t>(numel);
  const std::span<const float> values = layer.values.subspan(first, count);
  const RandomKey key =
      random_key(exchange, layer.id, exchange.group.getRank(), /*stage=*/0, begin);
  ConstTensorView input = view_of(values);
  if (numel == static_cast<std::int64_t>(layer.values.size())) input.shape = layer.shape;
  if (layer.residual.empty()) return layer.codec->compress(input, key, out);

  // The residual is taken here, while the values are in cache and not yet overwritten by the mean.
  const std::span<float> residual = layer.residual.subspan(first, count);
  TensorView reconstruction = view_of(residual);
  reconstruction.shape = input.shape;
  const std::size_t bytes = layer.codec->compress_and_reconstruct(input, key, out, reconstruction);
  for (std::size_t i = 0; i < count; ++i) residual[i] = values[i] - residual[i];
  return bytes;
}

}  // namespace thinwire::comm
