// The values that benchmarks average: known to every rank without being sent.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace thinwire::launch {

// What rank `rank` brings: element e lies in row e / cols, column e % cols of
//
//   x = 2^-18 · (A[row] · B[column] + noise(rank, e)),
//
// with whole numbers A and B (the same on all ranks) and noise that are near normal, so that every
// kind of codec has something to find: a matrix of rank one, and small and large entries. All sums
// of up to 60 ranks are exact in float32, whatever the order.
// `first` is the index of the first element.
void fill_bench_values(int rank, std::int64_t cols, std::int64_t first, std::span<float> values);

// The mean over ranks 0 … world − 1, in double precision.
std::vector<double> exact_bench_mean(int world, std::int64_t cols, std::int64_t numel);

}  // namespace thinwire::launch
