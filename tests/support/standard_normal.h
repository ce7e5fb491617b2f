// Numbers of the standard normal distribution.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace thinwire::testing {

inline std::vector<float> standard_normal(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(n);
  for (float& value : values) value = distribution(generator);
  return values;
}

}  // namespace thinwire::testing
