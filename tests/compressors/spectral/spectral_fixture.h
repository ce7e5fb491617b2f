// Matrices for the tests of bases.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::spectral::testing {

// Gradients of one layer: few directions that stay, with new weights in every step, and noise.
struct Gradients {
  std::size_t rows, cols, rank;
  float noise = 0.1f;

  std::vector<float> of(unsigned step) const {
    const auto left = thinwire::testing::standard_normal(rows * rank, 1000),
               right = thinwire::testing::standard_normal(cols * rank, 2000);
    const auto weight = thinwire::testing::standard_normal(rank, 3000 + step),
               rest = thinwire::testing::standard_normal(rows * cols, 4000 + step);
    std::vector<float> m(rows * cols);
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < cols; ++j) {
        float sum = noise * rest[i * cols + j];
        for (std::size_t r = 0; r < rank; ++r) {
          sum += weight[r] * left[r * rows + i] * right[r * cols + j];
        }
        m[i * cols + j] = sum;
      }
    }
    return m;
  }
};

inline double energy(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * double{value};
  return sum;
}

inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

}  // namespace thinwire::spectral::testing
