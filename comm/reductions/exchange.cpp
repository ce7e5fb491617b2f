#include "thinwire/comm/reductions/exchange.h"

namespace thinwire::comm {

Exchange Exchange::stage(std::uint64_t number) const {
  Exchange copy = *this;
  copy.layout ^= (number + 1) * 0x9E3779B97F4A7C15u;
  return copy;
}

RandomKey random_key(const Exchange& exchange, const LayerValues& layer, int peer,
                     std::uint32_t stage, std::int64_t begin) {
  return {.seed = exchange.seed,
          .step = exchange.step,
          .layer = layer.id,
          .rank = static_cast<std::uint32_t>(exchange.peers->group_rank(peer)),
          .stage = stage,
          .first_element = static_cast<std::uint64_t>(layer.first_element + begin)};
}

std::size_t encode_piece(const Exchange& exchange, const LayerValues& layer, std::int64_t begin,
                         std::int64_t numel, std::span<std::byte> out) {
  const auto first = static_cast<std::size_t>(begin);
  const auto count = static_cast<std::size_t>(numel);
  const std::span<const float> values = layer.values.subspan(first, count);
  const RandomKey key = random_key(exchange, layer, exchange.peers->rank(), /*stage=*/0, begin);
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
