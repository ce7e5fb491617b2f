#include "thinwire/compressors/kernels/elementwise.h"

#include <algorithm>

#include "thinwire/compressors/kernels/elementwise_ref.h"

namespace thinwire::kernels {

void load_floats(DType dtype, const void* data, std::size_t first, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = ref::load(dtype, data, first + i);
}

void store_floats(DType dtype, void* data, std::size_t first, std::size_t count,
                  const float* values, WriteMode mode) {
  for (std::size_t i = 0; i < count; ++i) {
    if (mode == WriteMode::kAssign) {
      ref::store(dtype, data, first + i, values[i]);
    } else {
      ref::accumulate(dtype, data, first + i, values[i]);
    }
  }
}

void add_elements(DType dtype, void* data, const void* addends, std::size_t count) {
  if (dtype == DType::kFloat64) {  // float32 would round the addend
    for (std::size_t i = 0; i < count; ++i) {
      double sum, addend;
      std::memcpy(&sum, static_cast<std::byte*>(data) + i * sizeof sum, sizeof sum);
      std::memcpy(&addend, static_cast<const std::byte*>(addends) + i * sizeof sum, sizeof sum);
      sum += addend;
      std::memcpy(static_cast<std::byte*>(data) + i * sizeof sum, &sum, sizeof sum);
    }
    return;
  }
  float block[kConvertBlock];
  for (std::size_t first = 0; first < count; first += kConvertBlock) {
    const std::size_t elements = std::min(kConvertBlock, count - first);
    load_floats(dtype, addends, first, elements, block);
    store_floats(dtype, data, first, elements, block, WriteMode::kAccumulate);
  }
}

}  // namespace thinwire::kernels
