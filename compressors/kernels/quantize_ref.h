// The scalar coder of quantised payloads (quantize_layout.h), the oracle of every faster one.
#pragma once

#include <cstddef>
#include <cstring>

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"
#include "thinwire/compressors/kernels/quantize.h"
#include "thinwire/compressors/kernels/quantize_layout.h"

namespace thinwire::kernels {

namespace ref {

// Bit `b` of the code of element `i` in the codes of a bucket of `elements`.
constexpr std::size_t code_bit(std::size_t elements, std::size_t bits, std::size_t i,
                               std::size_t b) {
  const std::size_t group = i / kGroupElements;
  if ((group + 1) * kGroupElements > elements) return i * bits + b;
  const std::size_t lane = i % kGroupLanes;
  const std::size_t in_stream = i % kGroupElements / kGroupLanes * bits + b;
  const std::size_t word = in_stream / 32 * kGroupLanes + lane;
  return group * kGroupElements * bits + word * 32 + in_stream % 32;
}

inline BucketStatistics statistics_of(DType dtype, const void* input, std::size_t first,
                                      std::size_t elements) {
  BucketStatistics result;
  for (std::size_t i = 0; i < elements; ++i) {
    const float x = load(dtype, input, first + i);
    result.finite = result.finite && is_finite(x);
    result.lo = x < result.lo ? x : result.lo;
    result.hi = x > result.hi ? x : result.hi;
    result.squares[i % kGroupLanes] += static_cast<double>(x) * static_cast<double>(x);
  }
  return result;
}

inline void decode_bucket(const QuantizeConfig& config, const std::byte* input, DType dtype,
                          void* output, std::size_t first, std::size_t elements, WriteMode mode) {
  const Levels levels = levels_of(config.norm, config.bits);
  const Bounds bounds = read_header(config.norm, input);
  const DecodeGrid grid = decode_grid(levels, bounds);
  const std::byte* codes = input + header_bytes(config.norm);
  const auto bits = static_cast<std::size_t>(config.bits);
  for (std::size_t i = 0; i < elements; ++i) {
    float value = bounds.hi;
    if (is_finite(bounds.hi)) {
      int code = 0;
      for (std::size_t b = 0; b < bits; ++b) {
        const std::size_t bit = code_bit(elements, bits, i, b);
        code |= (std::to_integer<int>(codes[bit / 8]) >> (bit % 8) & 1) << b;
      }
      value = limited_to(dtype, value_of(levels, grid, code + levels.lowest));
    }
    if (mode == WriteMode::kAssign) {
      store(dtype, output, first + i, value);
    } else {
      accumulate(dtype, output, first + i, value);
    }
  }
}

inline void encode_bucket(const QuantizeConfig& config, DType dtype, const void* input,
                          std::size_t first, std::size_t elements, const PhiloxStream& stream,
                          std::uint64_t first_word, std::byte* output) {
  const Levels levels = levels_of(config.norm, config.bits);
  const Bounds bounds = bounds_of(config.norm, statistics_of(dtype, input, first, elements));
  const EncodeGrid grid = encode_grid(levels, bounds);
  const auto bits = static_cast<std::size_t>(config.bits);
  std::memset(output, 0, bucket_bytes(config.norm, config.bits, elements));
  write_header(config.norm, bounds, output);
  if (!is_finite(bounds.hi)) return;
  std::byte* codes = output + header_bytes(config.norm);
  for (std::size_t i = 0; i < elements; ++i) {
    const float x = load(dtype, input, first + i);
    const int level = config.stochastic
                          ? level_stochastic(levels, grid, x, stream.uniform(first_word + i))
                          : level_nearest(grid, x);
    const int code = level - levels.lowest;
    for (std::size_t b = 0; b < bits; ++b) {
      const std::size_t bit = code_bit(elements, bits, i, b);
      codes[bit / 8] |= static_cast<std::byte>((code >> b & 1) << (bit % 8));
    }
  }
}

// kernels::quantize() and kernels::dequantize(), one element at a time.
inline void quantize(const QuantizeConfig& config, DType dtype, const void* input,
                     std::int64_t numel, const PhiloxStream& stream, std::uint64_t first_element,
                     std::byte* output, void* reconstruction = nullptr) {
  const auto count = static_cast<std::size_t>(numel);
  const auto bucket = static_cast<std::size_t>(config.bucket);
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = count - first < bucket ? count - first : bucket;
    encode_bucket(config, dtype, input, first, elements, stream, first_element + first, output);
    if (reconstruction != nullptr) {
      decode_bucket(config, output, dtype, reconstruction, first, elements, WriteMode::kAssign);
    }
    output += bucket_bytes(config.norm, config.bits, elements);
  }
}

inline void dequantize(const QuantizeConfig& config, const std::byte* input, DType dtype,
                       void* output, std::int64_t numel, WriteMode mode) {
  const auto count = static_cast<std::size_t>(numel);
  const auto bucket = static_cast<std::size_t>(config.bucket);
  for (std::size_t first = 0; first < count; first += bucket) {
    const std::size_t elements = count - first < bucket ? count - first : bucket;
    decode_bucket(config, input, dtype, output, first, elements, mode);
    input += bucket_bytes(config.norm, config.bits, elements);
  }
}

}  // namespace ref
}  // namespace thinwire::kernels
