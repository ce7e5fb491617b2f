// Scalar reference of sign_planes.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "thinwire/compressors/kernels/sign_planes.h"
#include "thinwire/compressors/kernels/sign_planes_math.h"

namespace thinwire::kernels::ref {

inline void write_means(const float* x, std::size_t count, const SignSums& sums, std::byte* out) {
  const SignMeans means = means_of(x, count, sums);
  std::memcpy(out, &means, sizeof means);
}

inline void set_bit(std::byte* plane, std::size_t i, bool bit) {
  plane[i / 8] |= static_cast<std::byte>(static_cast<unsigned>(bit) << (i % 8));
}
inline bool get_bit(const std::byte* plane, std::size_t i) {
  return (std::to_integer<unsigned>(plane[i / 8]) >> (i % 8) & 1u) != 0;
}

inline void onebit_encode(const float* x, std::size_t count, std::byte* out) {
  std::array<float, kSumLanes> positive{}, negative{};
  std::size_t negatives = 0;
  std::memset(out + 8, 0, plane_bytes(count));
  for (std::size_t i = 0; i < count; ++i) {
    const bool below = x[i] < 0;
    (below ? negative : positive)[i % kSumLanes] += x[i];
    negatives += below;
    set_bit(out + 8, i, below);
  }
  write_means(x, count, {folded(positive.data()), folded(negative.data()), negatives}, out);
}

inline void onebit_decode(const std::byte* in, std::size_t count, float* out) {
  std::array<float, 2> means;
  std::memcpy(means.data(), in, sizeof means);
  for (std::size_t i = 0; i < count; ++i) out[i] = means[get_bit(in + 8, i)];
}

inline void onebit_subtract(const std::byte* in, std::size_t count, float* values) {
  std::array<float, 2> means;
  std::memcpy(means.data(), in, sizeof means);
  for (std::size_t i = 0; i < count; ++i) values[i] -= means[get_bit(in + 8, i)];
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
    std::array<float, kSumLanes> squares{};
    const float pre = tern_lift(largest);
    const float inverse = 1.0f / (largest * pre);
    for (std::size_t i = 0; i < count; ++i) {
      const float y = x[i] * pre * inverse;
      squares[i % kSumLanes] += y * y;
    }
    scale = tern_clip(clip, largest, folded(squares.data()), count);
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
