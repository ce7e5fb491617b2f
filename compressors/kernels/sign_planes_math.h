// Arithmetic of onebit and terngrad that the CPU and the CUDA kernels share (sign_planes.h).
#pragma once

#include <cmath>
#include <cstddef>

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

// Sums are kept in 16 lanes, element i in lane i % 16, and folded in halves: one order of addition
// for all widths of registers.
inline constexpr std::size_t kSumLanes = 16;
THINWIRE_HOST_DEVICE float folded(float* lanes) {
  for (std::size_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

struct SignSums {
  float positive, negative;
  std::size_t negatives;
};
struct SignMeans {
  float positive, negative;
};

// The means of a bucket from its sums. Sums that overflowed although the elements are finite are
// taken again in double precision.
THINWIRE_HOST_DEVICE SignMeans means_of(const float* x, std::size_t count, const SignSums& sums) {
  SignMeans means{0, 0};
  const std::size_t positives = count - sums.negatives;
  if (is_finite(sums.positive) && is_finite(sums.negative)) {
    if (positives > 0) means.positive = sums.positive / static_cast<float>(positives);
    if (sums.negatives > 0) means.negative = sums.negative / static_cast<float>(sums.negatives);
    return means;
  }
  double positive = 0, negative = 0;
  for (std::size_t i = 0; i < count; ++i)
    (x[i] < 0 ? negative : positive) += static_cast<double>(x[i]);
  const auto mean = [](double sum, std::size_t of) {
    const auto value = static_cast<float>(sum / static_cast<double>(of));
    const bool nan = (bits_of(value) & 0x7FFFFFFFu) > kFloatInfinityBits;
    return nan ? float_of(kFloatNanBits) : value;
  };
  if (positives > 0) means.positive = mean(positive, positives);
  if (sums.negatives > 0) means.negative = mean(negative, sums.negatives);
  return means;
}

// How terngrad scales a bucket whose largest magnitude is `largest`: element x is sent if its
// 24-bit random number is below |x| · pre · inverse.
struct TernScale {
  float scale;    // s
  float pre;      // a power of two that lifts tiny buckets out of the denormals
  float inverse;  // 2^24 / (s · pre), a little more so that |x| = s is always sent
};
THINWIRE_HOST_DEVICE float tern_lift(float largest) {
  return largest < 0x1p-60f ? 0x1p80f : 1.0f;
}
THINWIRE_HOST_DEVICE TernScale tern_scale(float scale, float largest) {
  const float pre = tern_lift(largest);
  // s may exceed 2^100, where the quotient nears the denormals: that costs bits, not correctness.
  const double inverse =
      0x1p24 * (1 + 0x1p-22) / (static_cast<double>(scale) * static_cast<double>(pre));
  return {scale, pre, static_cast<float>(inverse)};
}

// clip · root mean square, from the lanes' sums of (x / largest)^2.
THINWIRE_HOST_DEVICE float tern_clip(float clip, float largest, float squares, std::size_t count) {
  const double rms = std::sqrt(static_cast<double>(squares) / static_cast<double>(count));
  const auto clipped =
      static_cast<float>(static_cast<double>(clip) * rms * static_cast<double>(largest));
  return clipped < largest ? clipped : largest;
}

// The 24-bit random number of element i: bytes i, i+1, i+2 (cyclic) of its word, the first on top.
THINWIRE_HOST_DEVICE std::uint32_t tern_random(std::uint32_t word, std::size_t i) {
  const auto turn = static_cast<unsigned>(8 * (i % 4));
  const std::uint32_t turned = turn == 0 ? word : word >> turn | word << (32 - turn);
  return (turned & 0xFFu) << 16 | (turned >> 8 & 0xFFu) << 8 | (turned >> 16 & 0xFFu);
}

}  // namespace thinwire::kernels
