// The layout of a quantised payload and its scalar coder, the oracle of every faster one.
//
// A payload is its buckets one after the other, all but the last of them full:
//
//   header   minmax: lo, hi; linf, l2: norm. float32, little-endian; NaN: the bucket held NaN or
//            infinity, decodes to NaN, and its codes are zero.
//   groups   one of 64 · bits bytes for every 512 elements: 16 interleaved streams of 32 codes. In
//            stream `lane` (0 … 15) code k, of element 16k + lane, starts at bit k · bits; the
//            stream's w-th 32-bit word is the group's little-endian word 16w + lane. A SIMD lane
//            thus packs its own elements, at any width of the registers.
//   rest     the last n mod 512 codes as one stream of bits, element i from bit i · bits, lowest
//            bit first, filled up with zeros to whole bytes.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"
#include "thinwire/compressors/kernels/quantize.h"

namespace thinwire::kernels {

inline constexpr std::size_t kGroupLanes = 16;
inline constexpr std::size_t kGroupElements = 512;

constexpr std::size_t header_bytes(Norm norm) {
  return norm == Norm::kMinMax ? 8 : 4;
}

constexpr std::size_t code_bytes(int bits, std::size_t elements) {
  return (elements * static_cast<std::size_t>(bits) + 7) / 8;
}

constexpr std::size_t bucket_bytes(Norm norm, int bits, std::size_t elements) {
  return header_bytes(norm) + code_bytes(bits, elements);
}

namespace ref {

// The largest magnitude, the extremes and whether all values are finite.
struct BucketStatistics {
  float lo = std::numeric_limits<float>::infinity();
  float hi = -std::numeric_limits<float>::infinity();
  bool finite = true;
  // Sums of squares of the elements whose index is j modulo 16; one order of addition for all
  // widths of registers.
  std::array<double, kGroupLanes> squares{};
};

// The bounds of a non-empty bucket. Adding zero turns −0 into +0: which of the two a minimum
// returns depends on the processor.
inline Bounds bounds_of(Norm norm, const BucketStatistics& statistics) {
  if (!statistics.finite) return {float_of(kFloatNanBits), float_of(kFloatNanBits)};
  const float lo = statistics.lo + 0.0f;
  const float hi = statistics.hi + 0.0f;
  if (norm == Norm::kMinMax) return {lo, hi};
  float largest = hi > -lo ? hi : -lo;
  if (norm == Norm::kL2 && lo != hi) {
    auto squares = statistics.squares;
    for (std::size_t half = kGroupLanes / 2; half > 0; half /= 2) {
      for (std::size_t j = 0; j < half; ++j) squares[j] += squares[j + half];
    }
    // Rounding may leave the root below the largest element, and it may exceed float32.
    const double root = std::sqrt(squares[0]);
    const float limited = root < static_cast<double>(std::numeric_limits<float>::max())
                              ? static_cast<float>(root)
                              : std::numeric_limits<float>::max();
    largest = limited > largest ? limited : largest;
  }
  return {-largest, largest};
}

inline void write_header(Norm norm, Bounds bounds, std::byte* out) {
  if (norm == Norm::kMinMax) {
    std::memcpy(out, &bounds.lo, 4);
    out += 4;
  }
  std::memcpy(out, &bounds.hi, 4);
}

// {NaN, NaN} where the header is not that of a finite bucket.
inline Bounds read_header(Norm norm, const std::byte* in) {
  Bounds bounds;
  std::memcpy(&bounds.hi, in + (norm == Norm::kMinMax ? 4 : 0), 4);
  if (norm == Norm::kMinMax) {
    std::memcpy(&bounds.lo, in, 4);
  } else {
    bounds.lo = -bounds.hi;
  }
  if (!is_finite(bounds.lo) || !is_finite(bounds.hi)) {
    return {float_of(kFloatNanBits), float_of(kFloatNanBits)};
  }
  return bounds;
}

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

// What the decoder writes for `value` into a target of `dtype`: levels of l2 may lie beyond the
// largest float16, to which they are cut, so that finite buckets stay finite.
inline float limited_to(DType dtype, float value) {
  if (dtype != DType::kFloat16 && dtype != DType::kBFloat16) return value;
  const float limit = dtype == DType::kFloat16 ? 65504.0f : 0x1.FEp127f;
  return value > limit ? limit : value < -limit ? -limit : value;
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
