// Arithmetic of powersgd that the CPU and the CUDA kernels share (low_rank.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

// A column whose length is below this part of what it was before it was made orthogonal to those
// before it depends on them.
inline constexpr double kDependent = 1e-6;

// A random number of mean 0 and variance 1: the sum of the four uniform numbers of [0, 2^24) of a
// Philox block, whose mean is 2^25 - 2 and whose variance is 2^48 / 3.
THINWIRE_HOST_DEVICE float start_number(const std::array<std::uint32_t, 4>& words) {
  std::uint64_t sum = 0;
  for (const std::uint32_t word : words) sum += word >> 8;
  return static_cast<float>(static_cast<std::int64_t>(sum) - ((std::int64_t{1} << 25) - 2)) *
         (1.7320508f * 0x1p-24f);
}

// The exponent of a number that is positive and finite: 1 <= x / 2^exponent < 2.
THINWIRE_HOST_DEVICE int exponent_of(float x) {
  // As a double no float is subnormal.
  return static_cast<int>(bits_of(static_cast<double>(x)) >> 52) - 1023;
}

// x / 2^exponent of an exponent of exponent_of(), rounded once.
THINWIRE_HOST_DEVICE float scaled_down(float x, int exponent) {
  const double factor = double_of(static_cast<std::uint64_t>(1023 - exponent) << 52);
  return static_cast<float>(static_cast<double>(x) * factor);
}

}  // namespace thinwire::kernels
