// The formats of the cast codec: one row each.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace thinwire::kernels {

struct CastFormat {
  std::string_view name;
  std::size_t bytes;  // of an element
  // Convert `count` elements, at most kConvertBlock, between float32 and the format. The bytes need
  // no alignment. Thread-safe.
  void (*encode)(const float* values, std::size_t count, std::byte* out);
  void (*decode)(const std::byte* in, std::size_t count, float* values);
};

// The first row is the codec's default.
std::span<const CastFormat> cast_formats();

}  // namespace thinwire::kernels
