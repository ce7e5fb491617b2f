// Sums over one row of a token matrix, in double precision, for clustering.
//
// Bit-equal on every SIMD target: element i adds to partial sum i mod 8, and the eight partial sums
// are added in a fixed order (see row_kernels_ref.h). Thread-safe.
#pragma once

#include <cstddef>

namespace thinwire::lsh {

// Sum of x[i]² over i < n.
double squared_norm(const float* x, std::size_t n);
double squared_norm(const double* x, std::size_t n);

// Sum of (x[i] - y[i])² over i < n.
double squared_distance(const float* x, const float* y, std::size_t n);
double squared_distance(const double* x, const double* y, std::size_t n);
double squared_distance(const float* x, const double* y, std::size_t n);

// sums[i] += x[i] for i < n.
void add_row(const float* x, double* sums, std::size_t n);
void add_row(const double* x, double* sums, std::size_t n);

}  // namespace thinwire::lsh
