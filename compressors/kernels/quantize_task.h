// What one call of the quantise kernels works on: plain data, which passes from the library to the
// CUDA module and from there to the device. Sizes and meaning as in kernels/quantize.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "thinwire/common/dtype.h"
#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/quantize_math.h"

namespace thinwire::kernels {

struct QuantizeShape {
  std::int32_t bits;  // 1 to 8
  Norm norm;
  DType dtype;
  std::int64_t bucket;  // 1 to 2^24
  std::int64_t numel;
};

struct QuantizeTask {
  QuantizeShape shape;
  bool stochastic;
  std::uint64_t first_element;
  PhiloxStream random;
  const void* input;     // aligned to its elements
  std::byte* payload;    // at any address
  void* reconstruction;  // null, or aligned to its elements; may be `input`
};

struct DequantizeTask {
  QuantizeShape shape;
  bool accumulate;
  const std::byte* payload;  // at any address, of the right length, any content
  void* output;              // aligned to its elements
};

static_assert(std::is_trivially_copyable_v<QuantizeTask> &&
              std::is_standard_layout_v<QuantizeTask> &&
              std::is_trivially_copyable_v<DequantizeTask> &&
              std::is_standard_layout_v<DequantizeTask>);

}  // namespace thinwire::kernels
