// The 8-bit floats of the OCP specification (OFP8, 2023) from and to float32, in integer
// arithmetic, rounding to nearest even.
//
// e4m3 has 3 bits of significand, largest value 448, NaN but no infinity; e5m2 has 2 bits, largest
// value 57344 and infinities. Finite values beyond the largest become the largest. NaN stays NaN,
// infinity stays infinite in e5m2 and becomes NaN in e4m3.
#pragma once

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

enum class Fp8 { kE4M3, kE5M2 };

// What tells the formats apart. Codes are without the sign bit, which is the top one.
struct Fp8Layout {
  int shift;                   // places between the significands of float32 and of the format
  std::uint32_t bias;          // what a float32 exponent field exceeds the format's by, shifted
  std::uint32_t smallest;      // float32 bits of the smallest normal number
  std::uint32_t largest;       // code of the largest finite number
  std::uint32_t infinity;      // code
  float step;                  // of the denormals
  float round;                 // a number whose last place is `step`: adding it rounds
  std::uint32_t top_exponent;  // of the largest number
  // Float32 fraction bits above which that exponent is not enough: the number would round beyond
  // the largest. Half way is such a case in e5m2, whose largest significand is odd.
  std::uint32_t top_fraction;
};

inline constexpr std::uint32_t kFp8Nan = 0x7F;

template <Fp8 kFormat>
inline constexpr Fp8Layout kFp8Layout =
    kFormat == Fp8::kE4M3
        ? Fp8Layout{20, 120u << 23, 121u << 23, 0x7E, 0x7F, 0x1p-9f, 0x1p14f, 8, 0x680000}
        : Fp8Layout{21, 112u << 23, 113u << 23, 0x7B, 0x7C, 0x1p-16f, 0x1p7f, 15, 0x6FFFFF};

template <Fp8 kFormat>
THINWIRE_HOST_DEVICE std::uint8_t fp8_from_float(float value) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  std::uint32_t code;
  if (magnitude > kFloatInfinityBits) {
    code = kFp8Nan;
  } else if (magnitude == kFloatInfinityBits) {
    code = kLayout.infinity;
  } else if (magnitude < kLayout.smallest) {
    code = bits_of(float_of(magnitude) + kLayout.round) - bits_of(kLayout.round);
  } else {
    const std::uint32_t odd = (magnitude >> kLayout.shift) & 1u;
    const std::uint32_t rounded = magnitude + ((1u << (kLayout.shift - 1)) - 1u) + odd;
    code = (rounded - kLayout.bias) >> kLayout.shift;
    if (code > kLayout.largest) code = kLayout.largest;
  }
  return static_cast<std::uint8_t>(bits >> 31 << 7 | code);
}

template <Fp8 kFormat>
THINWIRE_HOST_DEVICE float float_from_fp8(std::uint8_t fp8) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  const std::uint32_t code = fp8 & 0x7Fu;
  const std::uint32_t sign = static_cast<std::uint32_t>(fp8 & 0x80u) << 24;
  if (code > kLayout.largest) {
    return float_of(
        sign | (code == kFp8Nan || code != kLayout.infinity ? kFloatNanBits : kFloatInfinityBits));
  }
  const std::uint32_t normal = (code << kLayout.shift) + kLayout.bias;
  if (normal >= kLayout.smallest) return float_of(sign | normal);
  return float_of(sign | bits_of(static_cast<float>(code) * kLayout.step));
}

// The scale byte of a block whose largest finite magnitude has these bits: the block is divided by
// 2^(byte − 127), which brings that magnitude to the top of the format's range. Between 1 and
// kFp8MaxScale, so that the power and its inverse are normal numbers.
inline constexpr std::uint32_t kFp8MaxScale = 253;

template <Fp8 kFormat>
THINWIRE_HOST_DEVICE std::uint32_t fp8_scale(std::uint32_t largest) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  const std::uint32_t exponent =
      (largest >> 23) + ((largest & 0x7FFFFFu) > kLayout.top_fraction ? 1u : 0u);
  return exponent > kLayout.top_exponent ? exponent - kLayout.top_exponent : 1u;
}
THINWIRE_HOST_DEVICE float fp8_multiplier(std::uint32_t scale) {
  return float_of(scale << 23);
}
THINWIRE_HOST_DEVICE float fp8_inverse(std::uint32_t scale) {
  return float_of((254u - scale) << 23);
}

}  // namespace thinwire::kernels
