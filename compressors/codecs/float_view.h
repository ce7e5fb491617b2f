// What codecs that compute on whole tensors in float32 share.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire {

// The tensor's values as float32: the tensor itself where it is aligned float32, else a copy in
// `scratch` (float64 rounds to nearest even).
inline std::span<const float> as_floats(const ConstTensorView& tensor,
                                        std::vector<float>& scratch) {
  const auto count = static_cast<std::size_t>(tensor.numel);
  const bool aligned = std::bit_cast<std::uintptr_t>(tensor.data) % alignof(float) == 0;
  if (tensor.dtype == DType::kFloat32 && aligned) {
    return {static_cast<const float*>(tensor.data), count};
  }
  scratch.resize(count);
  kernels::load_floats(tensor.dtype, tensor.data, 0, count, scratch.data());
  return scratch;
}

// All of `output` becomes NaN, whatever the write mode: what a poisoned payload decodes to.
void poison(const TensorView& output);
// The same as entries of a tensor of `numel` elements.
void poison(std::int64_t numel, SparseEntries& entries);

}  // namespace thinwire
