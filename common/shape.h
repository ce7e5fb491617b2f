#pragma once

#include <cstdint>
#include <span>

namespace thinwire {

// Elements of a tensor: the product of its extents, 1 without any. Of shapes that come from a
// model; those that a file claims are checked for overflow where they are read.
constexpr std::int64_t numel_of(std::span<const std::int64_t> shape) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : shape) numel *= extent;
  return numel;
}

}  // namespace thinwire
