// Selection of the largest magnitudes without sorting.
//
// The order is that of the bits of |x| as an integer, which is the order of the magnitudes with
// infinities after every finite value and NaN after infinities; equal magnitudes are ordered by
// index, the lower first. So every function here has exactly one right answer, whatever path or
// SIMD target computes it; topk_ref.h is the plain statement of it.
//
// Outline of select_topk(): a sample of the tensor suggests a threshold that a few more than k
// elements should reach; one vector pass collects those that do; a radix histogram over these
// candidates alone finds the k-th magnitude. If the sample misled (fewer than k candidates, or far
// too many), the histogram runs over the whole tensor. The sample changes the time, never the
// result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/common/philox.h"

namespace thinwire::kernels {

// The chosen elements in ascending order of index, and buffers that keep their memory from call to
// call. Not thread-safe; one per thread.
struct TopkSelection {
  std::vector<std::uint32_t> indices;
  std::vector<float> values;

  std::vector<std::uint32_t> candidate_indices;
  std::vector<float> candidate_values;
  std::vector<float> sample;
};

// The k elements of largest magnitude; 1 <= k <= x.size() < 2^32.
void select_topk(std::span<const float> x, std::size_t k, TopkSelection& selection);

// The elements whose magnitude reaches the k-th largest of a random sample (drawn from `stream`)
// scaled to the tensor: one pass instead of two. Their number lies in [(k+1)/2, min(n, 2k)]; where
// the sample's threshold would leave that range, and for tensors no larger than the sample, the
// result is select_topk()'s.
void select_topk_sampled(std::span<const float> x, std::size_t k, const PhiloxStream& stream,
                         TopkSelection& selection);

// The magnitude bits of the k-th largest element, and how many elements lie strictly above it.
struct KthMagnitude {
  std::uint32_t key;
  std::size_t above;
};
KthMagnitude kth_magnitude(std::span<const float> x, std::size_t k);

// Elements a sample has; below this size nothing is sampled.
inline constexpr std::size_t kTopkSample = std::size_t{1} << 16;

}  // namespace thinwire::kernels
