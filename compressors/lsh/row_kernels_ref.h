// The scalar definition of the sums in row_kernels.h.
#pragma once

#include <cstddef>

namespace thinwire::lsh {

template <typename Term>
double sum_of_squares_ref(std::size_t n, const Term& term) {
  double sums[8] = {};
  for (std::size_t i = 0; i < n; ++i) sums[i % 8] += term(i) * term(i);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <typename T>
double squared_norm_ref(const T* x, std::size_t n) {
  return sum_of_squares_ref(n, [&](std::size_t i) { return static_cast<double>(x[i]); });
}

template <typename X, typename Y>
double squared_distance_ref(const X* x, const Y* y, std::size_t n) {
  return sum_of_squares_ref(
      n, [&](std::size_t i) { return static_cast<double>(x[i]) - static_cast<double>(y[i]); });
}

}  // namespace thinwire::lsh
