// What one call of the planes' kernels works on: scaled trits that are put on tensors in GPU
// memory, and taken off again. Plain data, which passes from the library to the CUDA module and
// from there to the device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "thinwire/common/dtype.h"

namespace thinwire::kernels {

// Elements that a block of threads changes at a time.
inline constexpr std::uint32_t kPlanesTile = 1024;

// One tensor's entries of the planes.
struct PlanesItem {
  void* target;        // contiguous, aligned to its elements
  void* kept;          // room for as many elements as the planes have entries of it
  std::int64_t begin;  // of its first element in the planes
  std::uint64_t first_tile;
  std::uint32_t numel;
  std::uint32_t kept_before;  // entries before `begin`, modulo 2^32
  float scale;
  DType dtype;  // float32, float16 or bfloat16
};

struct PlanesTask {
  const std::uint64_t* mask;
  const std::uint64_t* sign;
  const std::uint32_t* before;  // of every word of the mask: entries before it, modulo 2^32
  const PlanesItem* items;      // in the order of their tiles
  std::uint32_t count;
  std::uint64_t tiles;
};

enum class PlanesStage : std::int32_t {
  kPutOn,    // target += scale * trit; what the elements were before goes to `kept`
  kTakeOff,  // the reverse: the elements are what they were, to the bit
};

static_assert(std::is_trivially_copyable_v<PlanesTask> && std::is_standard_layout_v<PlanesTask> &&
              std::is_trivially_copyable_v<PlanesItem> && std::is_standard_layout_v<PlanesItem>);

}  // namespace thinwire::kernels
