// The layout of a quantised payload and what its header says, shared by the scalar reference, the
// SIMD kernels and CUDA.
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

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/quantize_math.h"

namespace thinwire::kernels {

inline constexpr std::size_t kGroupLanes = 16;
inline constexpr std::size_t kGroupElements = 512;

THINWIRE_HOST_DEVICE constexpr std::size_t header_bytes(Norm norm) {
  return norm == Norm::kMinMax ? 8 : 4;
}

THINWIRE_HOST_DEVICE constexpr std::size_t code_bytes(int bits, std::size_t elements) {
  return (elements * static_cast<std::size_t>(bits) + 7) / 8;
}

THINWIRE_HOST_DEVICE constexpr std::size_t bucket_bytes(Norm norm, int bits, std::size_t elements) {
  return header_bytes(norm) + code_bytes(bits, elements);
}

// The extremes, whether all values are finite, and what the norm l2 needs.
struct BucketStatistics {
  float lo = std::numeric_limits<float>::infinity();
  float hi = -std::numeric_limits<float>::infinity();
  bool finite = true;
  // Sums of squares of the elements whose index is j modulo 16, added in the order of the index;
  // one order of addition for all widths of registers.
  double squares[kGroupLanes] = {};
};

// The bounds of a non-empty bucket. Adding zero turns −0 into +0: which of the two a minimum
// returns depends on the processor.
THINWIRE_HOST_DEVICE Bounds bounds_of(Norm norm, const BucketStatistics& statistics) {
  if (!statistics.finite) return {float_of(kFloatNanBits), float_of(kFloatNanBits)};
  const float lo = statistics.lo + 0.0f;
  const float hi = statistics.hi + 0.0f;
  if (norm == Norm::kMinMax) return {lo, hi};
  float largest = hi > -lo ? hi : -lo;
  if (norm == Norm::kL2 && lo != hi) {
    double squares[kGroupLanes];
    for (std::size_t j = 0; j < kGroupLanes; ++j) squares[j] = statistics.squares[j];
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

THINWIRE_HOST_DEVICE void write_header(Norm norm, Bounds bounds, std::byte* out) {
  if (norm == Norm::kMinMax) {
    std::memcpy(out, &bounds.lo, 4);
    out += 4;
  }
  std::memcpy(out, &bounds.hi, 4);
}

// {NaN, NaN} where the header is not that of a finite bucket.
THINWIRE_HOST_DEVICE Bounds read_header(Norm norm, const std::byte* in) {
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

// What the decoder writes for `value` into a target of `dtype`: levels of l2 may lie beyond the
// largest float16, to which they are cut, so that finite buckets stay finite.
THINWIRE_HOST_DEVICE float limited_to(DType dtype, float value) {
  if (dtype != DType::kFloat16 && dtype != DType::kBFloat16) return value;
  const float limit = dtype == DType::kFloat16 ? 65504.0f : 0x1.FEp127f;
  return value > limit ? limit : value < -limit ? -limit : value;
}

}  // namespace thinwire::kernels
