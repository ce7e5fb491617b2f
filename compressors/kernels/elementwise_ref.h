// Scalar element access: reads any dtype as float32, writes float32 as any dtype. The oracle of
// elementwise_cpu.cpp, and what tails use.
#pragma once

#include <cstddef>
#include <cstring>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/half_math.h"

namespace thinwire::kernels::ref {

// `element` counts elements of `dtype`; `data` needs no alignment. float64 rounds to float32.
inline float load(DType dtype, const void* data, std::size_t element) {
  const auto* at = static_cast<const std::byte*>(data) + element * size_of(dtype);
  switch (dtype) {
    case DType::kFloat32: {
      float value;
      std::memcpy(&value, at, sizeof value);
      return value;
    }
    case DType::kFloat16: {
      std::uint16_t value;
      std::memcpy(&value, at, sizeof value);
      return float_from_half(value);
    }
    case DType::kBFloat16: {
      std::uint16_t value;
      std::memcpy(&value, at, sizeof value);
      return float_from_bfloat(value);
    }
    case DType::kFloat64: {
      double value;
      std::memcpy(&value, at, sizeof value);
      return static_cast<float>(value);
    }
  }
  return 0;
}

inline void store(DType dtype, void* data, std::size_t element, float value) {
  auto* at = static_cast<std::byte*>(data) + element * size_of(dtype);
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(at, &value, sizeof value);
      return;
    case DType::kFloat16: {
      const std::uint16_t half = half_from_float(value);
      std::memcpy(at, &half, sizeof half);
      return;
    }
    case DType::kBFloat16: {
      const std::uint16_t bfloat = bfloat_from_float(value);
      std::memcpy(at, &bfloat, sizeof bfloat);
      return;
    }
    case DType::kFloat64: {
      const double wide = value;
      std::memcpy(at, &wide, sizeof wide);
      return;
    }
  }
}

// target += value, computed in float32 (float64 targets: in float64) and rounded once to `dtype`.
inline void accumulate(DType dtype, void* data, std::size_t element, float value) {
  if (dtype == DType::kFloat64) {
    auto* at = static_cast<std::byte*>(data) + element * sizeof(double);
    double sum;
    std::memcpy(&sum, at, sizeof sum);
    sum += value;
    std::memcpy(at, &sum, sizeof sum);
    return;
  }
  store(dtype, data, element, load(dtype, data, element) + value);
}

}  // namespace thinwire::kernels::ref
