// Initial weights that depend on a seed and a name alone, so that they do not change with the
// number of ranks.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>

namespace thinwire::moe {

// Uniform in ±1/sqrt(fan_in), as torch::nn::Linear. `stream` tells the tensors of one seed apart.
inline at::Tensor uniform_weights(at::IntArrayRef shape, std::int64_t fan_in, std::uint64_t seed,
                                  std::uint64_t stream) {
  auto generator = at::detail::createCPUGenerator(seed * 0x9E3779B97F4A7C15u + stream);
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  return at::empty(shape, at::kFloat).uniform_(-bound, bound, generator);
}

}  // namespace thinwire::moe
