// Blocks of elements between a tensor's dtype and float32, the type in which codecs compute.
#pragma once

#include <cstddef>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::kernels {

// Elements that codecs convert at a time, through buffers on the stack: 2 KiB of float32 stay in
// the first-level cache together with the source and the target.
inline constexpr std::size_t kConvertBlock = 512;

// Both are safe on any alignment and thread; `first` counts elements of `dtype`.
// out[i] = data[first + i] as float32 (float64 rounds to nearest even).
void load_floats(DType dtype, const void* data, std::size_t first, std::size_t count, float* out);

// data[first + i] = values[i], or += values[i] summed in float32 (float64 data: in float64), then
// rounded to nearest even.
void store_floats(DType dtype, void* data, std::size_t first, std::size_t count,
                  const float* values, WriteMode mode);

// data[i] += addends[i], both of `dtype`, summed and rounded as in store_floats().
void add_elements(DType dtype, void* data, const void* addends, std::size_t count);

}  // namespace thinwire::kernels
