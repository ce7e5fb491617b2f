// One element of a tensor in a file, whose memory need not be aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"

namespace thinwire::peft::detail {

// Element `i` of an array of `dtype`, as float32 (float64 is rounded).
inline float load_float(const std::byte* data, std::int64_t i, DType dtype) {
  return kernels::ref::load(dtype, data, static_cast<std::size_t>(i));
}

inline void store_float(std::byte* data, std::int64_t i, DType dtype, float value) {
  kernels::ref::store(dtype, data, static_cast<std::size_t>(i), value);
}

}  // namespace thinwire::peft::detail
