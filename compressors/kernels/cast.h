// The formats of the cast codec: one row each.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace thinwire::kernels {

struct CastFormat {
  std::string_view name;
  // Bytes of an element, and elements that share one more byte, their scale; 1: no such byte.
  std::size_t element_bytes;
  std::size_t block;
  // Convert `count` elements between float32 and the format. The bytes need no alignment.
  // Thread-safe.
  void (*encode)(const float* values, std::size_t count, std::byte* out);
  void (*decode)(const std::byte* in, std::size_t count, float* values);
  // Whether `in` is what an encoder writes; null: any bytes are.
  bool (*valid)(const std::byte* in, std::size_t count);

  std::size_t bytes(std::size_t count) const {
    return count * element_bytes + (block > 1 ? (count + block - 1) / block : 0);
  }
};

// The first row is the codec's default.
std::span<const CastFormat> cast_formats();

}  // namespace thinwire::kernels
