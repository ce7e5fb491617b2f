// A contiguous tensor as a codec sees it: memory, shape, element type, device. It owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/common/dtype.h"

namespace thinwire {

enum class Device : std::uint8_t { kCpu, kCuda };

template <typename Pointer>
struct BasicTensorView {
  Pointer data = nullptr;
  std::int64_t numel = 0;
  DType dtype = DType::kFloat32;
  // The layer's shape, for codecs that see a matrix (powersgd); empty: one dimension of numel.
  std::span<const std::int64_t> shape = {};
  Device device = Device::kCpu;
  // cudaStream_t on which the work is queued; null on the CPU or for the default stream.
  void* stream = nullptr;

  std::size_t bytes() const { return static_cast<std::size_t>(numel) * size_of(dtype); }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

inline ConstTensorView as_const(const TensorView& view) {
  return {view.data, view.numel, view.dtype, view.shape, view.device, view.stream};
}

// A flat float32 view on the CPU.
inline TensorView view_of(std::span<float> values) {
  return {values.data(), static_cast<std::int64_t>(values.size())};
}
inline ConstTensorView view_of(std::span<const float> values) {
  return {values.data(), static_cast<std::int64_t>(values.size())};
}

// Whether decoding overwrites its target or adds to it.
enum class WriteMode { kAssign, kAccumulate };

}  // namespace thinwire
