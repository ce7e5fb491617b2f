// What the basis of a layer costs on one core, in ns an element: turning a gradient into it and a
// mean out of it, learning from the mean, and a refresh, alone and spread over 20 steps. Processor
// time of the thread, the least of the turns. Usage: bench_spectral [directions]
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/compressors/spectral/matrix_basis.h"
#include "thinwire/tests/bench/least_seconds.h"

namespace {

using namespace thinwire;

constexpr int kTurns = 30;

void run(std::int64_t rows, std::int64_t cols, int directions) {
  const RandomKey key{.seed = 9};
  spectral::MatrixBasis basis({rows, cols}, directions, key);
  const PhiloxStream stream = PhiloxStream::of(key);
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = stream.uniform(i) - 0.5f;
  const double ns = 1e9 / static_cast<double>(values.size());
  const double into = ns * least_seconds(kTurns, [&] { basis.turn_into(values); });
  const double out_of = ns * least_seconds(kTurns, [&] { basis.turn_out_of(values); });
  const double learn = ns * least_seconds(kTurns, [&] { basis.learn(values); });
  const double refresh = ns * least_seconds(kTurns,
                                            [&] {
                                              basis.learn(values);
                                              basis.refresh(key);
                                            }) -
                         learn;
  std::printf("%5lld x %-5lld %8.2f %8.2f %8.2f %10.2f %14.2f\n", static_cast<long long>(rows),
              static_cast<long long>(cols), into, out_of, learn, refresh, learn + refresh / 20);
}

}  // namespace

int main(int argc, char** argv) {
  const int directions = argc > 1 ? std::atoi(argv[1]) : 16;
  std::printf("# %d directions a side, %s, ns an element\n", directions,
              kernels::simd_target().c_str());
  std::printf("# %-11s %8s %8s %8s %10s %14s\n", "matrix", "into", "out of", "learn", "refresh",
              "basis a step");
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{64, 64},
                                   {64, 576},
                                   {256, 64},
                                   {256, 256},
                                   {1024, 1024},
                                   {4096, 1024}}) {
    run(rows, cols, directions);
  }
  return 0;
}
