// Logarithms and powers of two that are the same on every CPU and GPU: in integers, or in doubles
// by operations that IEEE 754 rounds. What an encoder decides by them (tables, steps) then does not
// depend on whose C library or device it runs on.
#pragma once

#include <cstdint>

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::entropy {

// Bits in fixed point: 2^-16 of a bit each.
using FixedBits = std::int64_t;
inline constexpr int kFixedBits = 16;
inline constexpr FixedBits kFixedBit = FixedBits{1} << kFixedBits;

// log2(1 + x / 2^24) of 0 ≤ x < 2^24, in 2^-24, to within 10 of these. A polynomial that is exact
// at both ends, x + x (1 − x) q(x), q fitted to Chebyshev points.
THINWIRE_HOST_DEVICE std::int64_t log2_of_mantissa(std::int64_t x) {
  std::int64_t q = -252443;
  q = 1059655 + (q * x >> 24);
  q = -2177962 + (q * x >> 24);
  q = 3281950 + (q * x >> 24);
  q = -4663271 + (q * x >> 24);
  q = 7426818 + (q * x >> 24);
  return x + ((x * ((std::int64_t{1} << 24) - x) >> 24) * q >> 24);
}

// log2 n of n > 0, to within 2^-16 of a bit.
THINWIRE_HOST_DEVICE FixedBits fixed_log2(std::uint64_t n) {
  const int zeros = kernels::leading_zeros(n);
  const auto mantissa = static_cast<std::int64_t>(n << zeros << 1 >> 40);
  const auto exponent = static_cast<std::int64_t>(63 - zeros);
  return ((exponent << 24) + log2_of_mantissa(mantissa) + (1 << 7)) >> 8;
}

// log2 x of x > 0 that is not subnormal, to within 1e-6.
THINWIRE_HOST_DEVICE double log2_of(double x) {
  const std::uint64_t bits = kernels::bits_of(x);
  const auto mantissa = static_cast<std::int64_t>(bits << 12 >> 40);
  const auto exponent = static_cast<std::int64_t>(bits >> 52) - 1023;
  return static_cast<double>((exponent << 24) + log2_of_mantissa(mantissa)) * 0x1p-24;
}

// 2^x of |x| < 1022, to within 1e-8 of it; powers of two are exact.
THINWIRE_HOST_DEVICE double exp2_of(double x) {
  const auto whole = static_cast<std::int64_t>(x + (x < 0 ? -0.5 : 0.5));
  const double y = (x - static_cast<double>(whole)) * 0.6931471805599453;
  double sum = 1 + y / 7;
  for (int n = 6; n > 0; --n) sum = 1 + y / n * sum;
  return sum * kernels::double_of(static_cast<std::uint64_t>(1023 + whole) << 52);
}

}  // namespace thinwire::entropy
