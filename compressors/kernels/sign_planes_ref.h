// Scalar reference of sign_planes.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "thinwire/compressors/kernels/host_device.h"
#include "thinwire/compressors/kernels/sign_planes.h"

namespace thinwire::kernels::ref {

// Sums are kept in 16 lanes, element i in lane i % 16, and folded in halves: one order of addition
// for all widths of registers.
inline constexpr std::size_t kLanes = 16;
inline float fold(std::array<float, kLanes> lanes) {
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

struct SignSums {
  float positive, negative;
  std::size_t negatives;
};

// The means of a bucket from its sums. Sums that overflowed although the elements are finite are
// taken again in double precision.
inline void write_means(const float* x, std::size_t count, const SignSums& sums, std::byte* out) {
  std::array<float, 2> means{};
  const std::size_t positives = count - sums.negatives;
  if (is_finite(sums.positive) && is_finite(sums.negative)) {
    if (positives > 0) means[0] = sums.positive / static_cast<float>(positives);
    if (sums.negatives > 0) means[1] = sums.negative / static_cast<float>(sums.negatives);
  } else {
    double positive = 0, negative = 0;
    for (std::size_t i = 0; i < count; ++i)
      (x[i] < 0 ? negative : positive) += static_cast<double>(x[i]);
    if (positives > 0) means[0] = static_cast<float>(positive / static_cast<double>(positives));
    if (sums.negatives > 0) {
      means[1] = static_cast<float>(negative / static_cast<double>(sums.negatives));
    }
  }
  std::memcpy(out, means.data(), sizeof means);
}

inline void set_bit(std::byte* plane, std::size_t i, bool bit) {
  plane[i / 8] |= static_cast<std::byte>(static_cast<unsigned>(bit) << (i % 8));
}
inline bool get_bit(const std::byte* plane, std::size_t i) {
  return (std::to_integer<unsigned>(plane[i / 8]) >> (i % 8) & 1u) != 0;
}

inline void onebit_encode(const float* x, std::size_t count, std::byte* out) {
  std::array<float, kLanes> positive{}, negative{};
  std::size_t negatives = 0;
  std::memset(out + 8, 0, plane_bytes(count));
  for (std::size_t i = 0; i < count; ++i) {
    const bool below = x[i] < 0;
    (below ? negative : positive)[i % kLanes] += x[i];
    negatives += below;
    set_bit(out + 8, i, below);
  }
  write_means(x, count, {fold(positive), fold(negative), negatives}, out);
}

inline void onebit_decode(const std::byte* in, std::size_t count, float* out) {
  std::array<float, 2> means;
  std::memcpy(means.data(), in, sizeof means);
  for (std::size_t i = 0; i < count; ++i) out[i] = means[get_bit(in + 8, i)];
}

// How terngrad scales a bucket whose largest magnitude is `largest`: element x is sent if its
// 24-bit random number is below |x| · pre · inverse.
struct TernScale {
  float scale;    // s
  float pre;      // a power of two that lifts tiny buckets out of the denormals
  float inverse;  // 2^24 / (s · pre), a little more so that |x| = s is always sent
};
inline float tern_lift(float largest) {
  return largest < 0x1p-60f ? 0x1p80f : 1.0f;
}
inline TernScale tern_scale(float scale, float largest) {
  const float pre = tern_lift(largest);
  // s may exceed 2^100, where the quotient nears the denormals: that costs bits, not correctness.
  const double inverse =
      0x1p24 * (1 + 0x1p-22) / (static_cast<double>(scale) * static_cast<double>(pre));
  return {scale, pre, static_cast<float>(inverse)};
}

// clip · root mean square, from the lanes' sums of (x / largest)^2.
inline float tern_clip(float clip, float largest, float squares, std::size_t count) {
  const double rms = std::sqrt(static_cast<double>(squares) / static_cast<double>(count));
  return std::min(
      largest, static_cast<float>(static_cast<double>(clip) * rms * static_cast<double>(largest)));
}

// The 24-bit random number of element i: bytes i, i+1, i+2 (cyclic) of its word, the first on top.
inline std::uint32_t tern_random(std::uint32_t word, std::size_t i) {
  const auto turn = static_cast<unsigned>(8 * (i % 4));
  const std::uint32_t turned = turn == 0 ? word : word >> turn | word << (32 - turn);
  return (turned & 0xFFu) << 16 | (turned >> 8 & 0xFFu) << 8 | (turned >> 16 & 0xFFu);
}

inline void terngrad_encode(const float* x, std::size_t count, float clip,
                            const PhiloxStream& stream, std::uint64_t first, std::byte* out) {
  std::uint32_t key = 0;
  for (std::size_t i = 0; i < count; ++i) key = std::max(key, bits_of(x[i]) & 0x7FFFFFFFu);
  std::byte* sent = out + 4;
  std::byte* signs = sent + plane_bytes(count);
  std::memset(out, 0, terngrad_bytes(count));
  if (key >= kFloatInfinityBits) {
    std::memcpy(out, &kFloatNanBits, 4);
    return;
  }
  const float largest = float_of(key);
  if (largest == 0) return;
  float scale = largest;
  if (clip > 0) {
    std::array<float, kLanes> squares{};
    const float pre = tern_lift(largest);
    const float inverse = 1.0f / (largest * pre);
    for (std::size_t i = 0; i < count; ++i) {
      const float y = x[i] * pre * inverse;
      squares[i % kLanes] += y * y;
    }
    scale = tern_clip(clip, largest, fold(squares), count);
  }
  const TernScale s = tern_scale(scale, largest);
  std::memcpy(out, &s.scale, 4);
  for (std::size_t i = 0; i < count; ++i) {
    const auto random = static_cast<float>(tern_random(stream.word((first + i) / 4), i));
    const float magnitude = float_of(bits_of(x[i]) & 0x7FFFFFFFu);
    set_bit(sent, i, random < magnitude * s.pre * s.inverse);
    set_bit(signs, i, bits_of(x[i]) >> 31 != 0);
  }
}

inline void terngrad_decode(const std::byte* in, std::size_t count, float* out) {
  float scale;
  std::memcpy(&scale, in, 4);
  const std::byte* signs = in + 4 + plane_bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float value = get_bit(signs, i) ? -scale : scale;
    out[i] = !is_finite(scale) ? float_of(kFloatNanBits) : get_bit(in + 4, i) ? value : 0.0f;
  }
}

}  // namespace thinwire::kernels::ref
