// The arithmetic of quantisation, shared by the scalar reference, the SIMD kernels and CUDA.
//
// A bucket is coded on a grid of levels that its header determines:
//
//   minmax             header {lo, hi}; 2^bits levels lo … hi, unit = (hi − lo) / (2^bits − 1)
//   linf, l2           header {norm};   2s + 1 levels −norm … 0 … norm, s = 2^(bits−1) − 1,
//                      unit = norm / s
//   linf, l2, 1 bit    header {norm};   the two levels −norm and norm, unit = 2 · norm
//
// With linf the norm is the largest magnitude. With l2 it is the Euclidean norm, as in QSGD
// (Alistarh et al., NeurIPS 2017), except in a bucket of one repeated value, whose magnitude is
// taken instead: that value is then a level, and every decoder works as before.
//
// The outermost levels of linf and l2 are exactly ±norm, and the lowest of minmax is exactly lo, so
// constants survive with every norm. Buckets of tiny or huge values (hi − lo may be denormal, or
// exceed the largest float) are scaled by a power of two before the arithmetic.
#pragma once

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

enum class Norm { kMinMax, kLinf, kL2 };

// The part of the grid that depends on the configuration alone. A code is level + offset.
struct Levels {
  int lowest;    // level of code 0
  int highest;   // the largest level
  float step;    // 1 / (levels across the span); step · highest is exactly 1 for every bits
  bool centred;  // levels are symmetric around 0 and the header's norm is the span
};

THINWIRE_HOST_DEVICE Levels levels_of(Norm norm, int bits) {
  if (norm == Norm::kMinMax || bits == 1) {
    const int highest = (1 << bits) - 1;
    return {0, highest, 1.0f / static_cast<float>(highest), false};
  }
  const int highest = (1 << (bits - 1)) - 1;
  return {-highest, highest, 1.0f / static_cast<float>(highest), true};
}

// Bounds of a bucket, as its header has them: minmax {lo, hi}, linf and l2 {−norm, norm}. NaN in
// both marks a bucket that held a non-finite value.
struct Bounds {
  float lo, hi;
};

// level = round(clamp((x · scale − base) · inverse))
struct EncodeGrid {
  float scale, base, inverse;
};

THINWIRE_HOST_DEVICE EncodeGrid encode_grid(const Levels& levels, Bounds bounds) {
  const double span = levels.centred
                          ? static_cast<double>(bounds.hi)
                          : static_cast<double>(bounds.hi) - static_cast<double>(bounds.lo);
  if (!(span > 0)) return {1.0f, levels.centred ? 0.0f : bounds.lo, 0.0f};
  // Ordinary buckets are not scaled. Others are by 2^-exponent, which brings the span near 1; the
  // clamp keeps the scale a normal float.
  int exponent = static_cast<int>(bits_of(span) >> 52) - 1023;
  if (exponent >= -64 && exponent <= 64) exponent = 0;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  const float scale = float_of(static_cast<std::uint32_t>(127 - exponent) << 23);
  const double inverse = static_cast<double>(levels.highest) / (span * static_cast<double>(scale));
  return {scale, levels.centred ? 0.0f : bounds.lo * scale, static_cast<float>(inverse)};
}

// value = (base + level · step · span) · post, without base and post where levels are centred
struct DecodeGrid {
  float base, span, post;
};

THINWIRE_HOST_DEVICE DecodeGrid decode_grid(const Levels& levels, Bounds bounds) {
  if (levels.centred) return {0.0f, bounds.hi, 1.0f};
  constexpr float kHuge = 0x1p125f;
  const bool huge = !(bounds.lo > -kHuge && bounds.hi < kHuge);
  const float pre = huge ? 0.25f : 1.0f;
  const float base = bounds.lo * pre;
  float span = static_cast<float>(
      (static_cast<double>(bounds.hi) - static_cast<double>(bounds.lo)) * static_cast<double>(pre));
  // Rounding up must not carry the highest level past the largest float.
  if (huge && base + span > bounds.hi * pre) span = float_of(bits_of(span) - 1);
  return {base, span, huge ? 4.0f : 1.0f};
}

// The level of one element of a finite bucket. Nearest rounds ties to even, stochastic rounds up
// with probability equal to the fraction; `uniform` is in [0, 1).
THINWIRE_HOST_DEVICE int level_nearest(const EncodeGrid& grid, float x) {
  const float t = (x * grid.scale - grid.base) * grid.inverse;
  // Adding 1.5 · 2^23 leaves the rounded integer in the low bits of the sum.
  return static_cast<int>(bits_of(t + 12582912.0f)) - static_cast<int>(bits_of(12582912.0f));
}

THINWIRE_HOST_DEVICE int level_stochastic(const Levels& levels, const EncodeGrid& grid, float x,
                                          float uniform) {
  float t = (x * grid.scale - grid.base) * grid.inverse;
  const float highest = static_cast<float>(levels.highest);
  const float lowest = static_cast<float>(levels.lowest);
  t = t < lowest ? lowest : t;
  t = t > highest ? highest : t;
  int floor = static_cast<int>(t);
  if (static_cast<float>(floor) > t) --floor;
  return floor + (uniform < t - static_cast<float>(floor) ? 1 : 0);
}

THINWIRE_HOST_DEVICE float value_of(const Levels& levels, const DecodeGrid& grid, int level) {
  const float offset = static_cast<float>(level) * levels.step * grid.span;
  return levels.centred ? offset : (grid.base + offset) * grid.post;
}

}  // namespace thinwire::kernels
