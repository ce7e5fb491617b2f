// Between ATen tensors and the views that codecs take.
#pragma once

#include <ATen/core/Tensor.h>

#include "thinwire/common/error.h"
#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::comm {

inline bool has_codec_dtype(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kDouble:
      return DType::kFloat64;
    default:
      throw InvalidArgument(
          concat("codecs take float32, float16, bfloat16 and float64 tensors, got ",
                 toString(tensor.scalar_type())));
  }
}

using thinwire::view_of;  // of spans

// The view lives as long as the tensor (its shape is the tensor's own). Throws InvalidArgument for
// a tensor that is not contiguous.
inline TensorView view_of(const at::Tensor& tensor) {
  check(tensor.is_contiguous(), "a codec needs a contiguous tensor, got strides ", tensor.strides(),
        " for shape ", tensor.sizes());
  return {tensor.data_ptr(),
          tensor.numel(),
          dtype_of(tensor),
          {tensor.sizes().data(), tensor.sizes().size()},
          tensor.is_cuda() ? Device::kCuda : Device::kCpu,
          nullptr};
}

}  // namespace thinwire::comm
