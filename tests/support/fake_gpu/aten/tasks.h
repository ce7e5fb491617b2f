// ATen's work as tasks of the fake device's streams.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "thinwire/tests/support/fake_gpu/detector.h"

namespace thinwire::fake_gpu {

// A tensor as a task knows it: its memory and shape. It holds no reference, for then memory would
// live until the work is done, which a GPU does not do.
struct TensorPlace {
  void* data = nullptr;
  std::vector<std::int64_t> sizes, strides;
  at::ScalarType dtype = at::kFloat;

  static TensorPlace of(const at::Tensor& tensor);
  // The same bytes as a CPU tensor. Inside of a task.
  at::Tensor in_task() const;
  // From the first to the last element.
  Access access(bool write) const;
};

// Queues on the device's current stream of c10.
void queue(at::Device device, const std::string& what, std::function<void()> run,
           std::vector<Access> accesses);

}  // namespace thinwire::fake_gpu
