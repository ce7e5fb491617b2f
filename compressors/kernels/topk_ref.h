// The plain scalar truth of topk.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace thinwire::kernels::ref {

// Order of magnitudes, see topk.h.
inline std::uint32_t magnitude_key(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu;
}

// Indices, ascending, of the k largest magnitudes.
inline std::vector<std::uint32_t> select_topk(std::span<const float> x, std::size_t k) {
  std::vector<std::uint32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return magnitude_key(x[a]) > magnitude_key(x[b]);
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace thinwire::kernels::ref
