// What the makers of tables for kernels have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::comm {

// Frames begin where the widest accesses are aligned.
inline std::int64_t padded_frame(std::size_t bytes) {
  constexpr std::size_t kAlignment = 16;
  return static_cast<std::int64_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
}

inline std::uint32_t segments_of(std::size_t payload_bytes) {
  return static_cast<std::uint32_t>((payload_bytes + kernels::kSegmentBytes - 1) /
                                    kernels::kSegmentBytes);
}

inline float* address_of(const at::Tensor& values, std::int64_t first) {
  return values.defined() ? values.mutable_data_ptr<float>() + first : nullptr;
}

// A copy of these bytes on the device. Waits.
at::Tensor bytes_on(at::Device device, const void* bytes, std::size_t count);

template <typename Entry>
at::Tensor table_on(at::Device device, const std::vector<Entry>& entries) {
  static_assert(kernels::kIsPlain<Entry>);
  return bytes_on(device, entries.data(), entries.size() * sizeof(Entry));
}

// What came from a saved state was made on another stream than works on it.
void record_on_current_stream(const std::vector<at::Tensor>& tensors, at::Device device);

// Makes room for so many, zeros, since padding travels too. Some more than needed, for the next
// bucket may need more.
void enlarge(at::Tensor& memory, std::int64_t numel, at::ScalarType type, at::Device device);

template <typename T>
T* data_of(const at::Tensor& memory) {
  return static_cast<T*>(memory.mutable_data_ptr());
}

}  // namespace thinwire::comm
