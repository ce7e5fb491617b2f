// Conversions between float32 and the 16-bit types, on bits, for memory that need not be aligned.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "thinwire/common/dtype.h"

namespace thinwire::peft::detail {

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Round to nearest even; NaN stays NaN.
inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

// A float16 number has the value of the float32 with the same fields times 2^112, because the
// exponent biases differ by 112; the multiplication also renormalises subnormal numbers.
inline float fp16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7FFFu) << 13;
  if ((bits & 0x7C00u) == 0x7C00u) return std::bit_cast<float>(sign | magnitude | 0x7F800000u);
  const float value = std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

// Round to nearest even; overflow gives infinity, NaN stays NaN.
inline std::uint16_t float_to_fp16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the unit of the last place with 2^-24, rounding as it does so.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) & 0x7FFu));
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// Element `i` of an unaligned array of `dtype`, as float32 (float64 is rounded).
inline float load_float(const std::byte* data, std::int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kFloat32: {
      float value;
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    case DType::kFloat64: {
      double value;
      std::memcpy(&value, data + 8 * i, 8);
      return static_cast<float>(value);
    }
    default: {
      std::uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      return dtype == DType::kFloat16 ? fp16_to_float(bits) : bf16_to_float(bits);
    }
  }
}

inline void store_float(std::byte* data, std::int64_t i, DType dtype, float value) {
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(data + 4 * i, &value, 4);
      return;
    case DType::kFloat64: {
      const double wide = value;
      std::memcpy(data + 8 * i, &wide, 8);
      return;
    }
    default: {
      const std::uint16_t bits =
          dtype == DType::kFloat16 ? float_to_fp16(value) : float_to_bf16(value);
      std::memcpy(data + 2 * i, &bits, 2);
      return;
    }
  }
}

}  // namespace thinwire::peft::detail
