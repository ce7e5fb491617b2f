// Copies, fills and reads of CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace thinwire::fake_gpu {

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking);
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to);
at::Tensor& fill_(at::Tensor& self, const at::Scalar& value);
at::Tensor& zero_(at::Tensor& self);
at::Scalar local_scalar_dense(const at::Tensor& tensor);

}  // namespace thinwire::fake_gpu
