// Scalar reference of fp8.h.
#pragma once

#include <algorithm>
#include <cstddef>

#include "thinwire/compressors/kernels/fp8.h"

namespace thinwire::kernels::ref {

template <Fp8 kFormat>
void fp8_encode(const float* x, std::size_t count, std::byte* out) {
  for (std::size_t first = 0; first < count; first += kFp8Block) {
    const std::size_t end = std::min(count, first + kFp8Block);
    std::uint32_t largest = 0;
    for (std::size_t i = first; i < end; ++i) {
      if (is_finite(x[i])) largest = std::max(largest, bits_of(x[i]) & 0x7FFFFFFFu);
    }
    const std::uint32_t scale = fp8_scale<kFormat>(largest);
    *out++ = static_cast<std::byte>(scale);
    for (std::size_t i = first; i < end; ++i) {
      *out++ = static_cast<std::byte>(fp8_from_float<kFormat>(x[i] * fp8_inverse(scale)));
    }
  }
}

template <Fp8 kFormat>
void fp8_decode(const std::byte* in, std::size_t count, float* out) {
  for (std::size_t first = 0; first < count; first += kFp8Block) {
    const std::size_t end = std::min(count, first + kFp8Block);
    const float multiplier = fp8_multiplier(std::to_integer<std::uint32_t>(*in++));
    for (std::size_t i = first; i < end; ++i) {
      const float value = float_from_fp8<kFormat>(std::to_integer<std::uint8_t>(*in++));
      out[i] = is_finite(value) ? value * multiplier : value;
    }
  }
}

}  // namespace thinwire::kernels::ref
