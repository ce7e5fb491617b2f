// Speed of a rank's experts with uneven rows, forward and backward, against taking each expert's
// weights out of the stack by itself; and of the permutations of rows around them.
// Usage: bench_experts [experts] [width] [hidden] [rows] [threads]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "thinwire/common/median.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/layer/experts.h"
#include "thinwire/moe/rows/row_ops.h"

namespace {

using namespace thinwire;

constexpr int kRepeats = 5;

template <typename Body>
double median_seconds(const Body& body) {
  body();
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = Clock::now();
    body();
    seconds.push_back(seconds_since(start));
  }
  return median(seconds);
}

// Half of the rows for the first expert, half of the rest for the second and so on.
std::vector<std::int64_t> uneven(std::int64_t experts, std::int64_t rows) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);
  for (std::size_t e = 0; e + 1 < counts.size(); ++e) {
    counts[e] = (rows + 1) / 2;
    rows -= counts[e];
  }
  counts.back() = rows;
  return counts;
}

// As GroupedFfn, but with w[e] for every expert: the gradient of each such slice is as large as the
// whole stack.
at::Tensor slice_by_slice(const std::vector<at::Tensor>& weights, const at::Tensor& rows,
                          const std::vector<std::int64_t>& counts) {
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    const at::Tensor hidden =
        at::gelu(at::matmul(rows.narrow(0, begin, counts[e]), weights[0][expert]));
    parts.push_back(at::matmul(hidden, weights[1][expert]));
    begin += counts[e];
  }
  return at::cat(parts);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  const std::int64_t experts = argument(1, 8), dim = argument(2, 1024), hidden = argument(3, 4096),
                     rows = argument(4, 256);
  at::set_num_threads(static_cast<int>(argument(5, 1)));
  moe::GroupedFfn group(0, experts, {.dim = dim, .hidden = hidden, .bias = false});
  const std::vector<at::Tensor> weights = group.parameters();
  const std::vector<std::int64_t> counts = uneven(experts, rows);
  const at::Tensor x = at::randn({rows, dim}).requires_grad_();
  std::printf("%lld experts of %lld x %lld, %lld rows, %d thread(s)\n",
              static_cast<long long>(experts), static_cast<long long>(dim),
              static_cast<long long>(hidden), static_cast<long long>(rows), at::get_num_threads());
  const auto step = [&](const auto& forward) {
    return median_seconds([&] {
      for (const at::Tensor& weight : weights) weight.mutable_grad() = at::Tensor();
      x.mutable_grad() = at::Tensor();
      forward().sum().backward();
    });
  };
  std::printf("%-36s %8.1f ms\n", "slice by slice",
              1e3 * step([&] { return slice_by_slice(weights, x, counts); }));
  std::printf("%-36s %8.1f ms\n", "taken apart at once",
              1e3 * step([&] { return group.forward(x, counts); }));

  constexpr std::int64_t kRows = 16384;
  std::vector<std::int32_t> order(kRows);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  const auto map = moe::gather_map(order, kRows);
  const at::Tensor many = at::randn({kRows, dim}).requires_grad_();
  const at::Tensor gradient = at::randn({kRows, dim});
  const double seconds = median_seconds([&] {
    many.mutable_grad() = at::Tensor();
    moe::map_rows(many, map).backward(gradient);
  });
  std::printf("%-36s %8.1f ms, %.2f GB/s\n", "a permutation of 16384 rows and back", 1e3 * seconds,
              2e-9 * static_cast<double>(many.nbytes()) / seconds);
  return 0;
}
