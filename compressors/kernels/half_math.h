// float16 and bfloat16 from and to float32, in integer arithmetic, rounding to nearest even.
//
// NaN stays NaN (quiet, sign and upper payload bits kept), infinities stay, and what overflows the
// narrow type becomes infinite, all as the conversion instructions of processors do.
#pragma once

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

THINWIRE_HOST_DEVICE std::uint16_t half_from_float(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > kFloatInfinityBits) {
    return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  }
  constexpr std::uint32_t kOverflow = 0x477FF000u;  // 65520, halfway to the first value above 65504
  if (magnitude >= kOverflow) return static_cast<std::uint16_t>(sign | 0x7C00u);
  constexpr std::uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
  if (magnitude < kSmallestNormal) {
    // The last place of 0.5 is 2^-24, the step of float16's denormals: the addition rounds.
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)));
  }
  magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u) >> 13));
}

THINWIRE_HOST_DEVICE float float_from_half(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7FFFu;
  if (magnitude > 0x7C00u) return float_of(sign | kFloatNanBits | ((magnitude & 0x3FFu) << 13));
  if (magnitude == 0x7C00u) return float_of(sign | kFloatInfinityBits);
  if (magnitude < 0x400u) {
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return float_of(sign | ((magnitude << 13) + 0x38000000u));
}

THINWIRE_HOST_DEVICE std::uint16_t bfloat_from_float(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFu) > kFloatInfinityBits) {
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

THINWIRE_HOST_DEVICE float float_from_bfloat(std::uint16_t bfloat) {
  return float_of(static_cast<std::uint32_t>(bfloat) << 16);
}

}  // namespace thinwire::kernels
