#include "thinwire/comm/average/reduce/reduction_context.h"

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {

ReductionContext ReductionContext::stage(std::uint64_t number) const {
  ReductionContext copy = *this;
  copy.layout ^= (number + 1) * 0x9E3779B97F4A7C15u;
  return copy;
}

RandomKey random_key(const ReductionContext& context, const LayerValues& layer, int peer,
                     std::uint32_t stage, std::int64_t begin) {
  return {.seed = context.seed,
          .step = context.step,
          .layer = layer.id,
          .rank = static_cast<std::uint32_t>(context.peers->group_rank(peer)),
          .stage = stage,
          .first_element = static_cast<std::uint64_t>(layer.first_element + begin)};
}

bool add_carried(const LayerValues& layer, std::int64_t begin, std::span<float> into) {
  const auto first = static_cast<std::size_t>(begin);
  const float* const values = layer.values.data() + first;
  if (layer.carried.empty()) {
    if (into.data() != values) std::copy(values, values + into.size(), into.begin());
    return kernels::all_finite(into);
  }
  return kernels::add_scaled(values, layer.carried.data() + first, layer.carried_factor, into);
}

void note_residual(const LayerValues& layer, std::span<const float> part) {
  if (layer.residual_finite && !kernels::all_finite(part)) *layer.residual_finite = false;
}

void keep_residual(const LayerValues& layer, std::int64_t begin, std::int64_t numel) {
  if (layer.kept.empty() || !*layer.residual_finite) return;
  const auto first = static_cast<std::size_t>(begin);
  const auto residual = layer.residual.subspan(first, static_cast<std::size_t>(numel));
  kernels::copy_past_cache(residual, layer.kept.data() + begin);
}

void keep_residual(const LayerValues& layer) {
  keep_residual(layer, 0, static_cast<std::int64_t>(layer.values.size()));
}

std::size_t encode_piece(const ReductionContext& context, const LayerValues& layer,
                         std::int64_t begin, std::int64_t numel, std::span<std::byte> out) {
  const auto first = static_cast<std::size_t>(begin);
  const auto count = static_cast<std::size_t>(numel);
  const RandomKey key = random_key(context, layer, context.peers->rank(), /*stage=*/0, begin);
  const bool whole = count == layer.values.size();
  if (layer.residual.empty()) {
    THINWIRE_ASSERT(layer.carried.empty());
    ConstTensorView input = view_of(std::span<const float>(layer.values).subspan(first, count));
    if (whole) input.shape = layer.shape;
    return layer.codec->compress(input, key, out);
  }
  // Corrected, encoded and what was lost taken while the piece is in cache.
  const std::span<float> residual = layer.residual.subspan(first, count);
  const bool finite = add_carried(layer, begin, residual);
  TensorView corrected = view_of(residual);
  if (whole) corrected.shape = layer.shape;
  if (layer.codec->traits().lossless) {
    const std::size_t bytes = layer.codec->compress(as_const(corrected), key, out);
    std::ranges::fill(residual, 0.0f);
    if (!finite && layer.residual_finite) *layer.residual_finite = false;
    return bytes;
  }
  const std::size_t bytes = layer.codec->compress_and_subtract(corrected, key, out);
  // A codec of whole layers has gone far beyond the cache; it loses nothing of finite values that
  // is not finite.
  if (layer.codec->block_size() > 0) {
    note_residual(layer, residual);
  } else if (!finite && layer.residual_finite) {
    *layer.residual_finite = false;
  }
  return bytes;
}

}  // namespace thinwire::comm
