// The MPI backend next to Gloo: collectives of the same ranks on the same bytes, in turns.
//
//   mpirun -np 2 bench_mpi_backend [largest size in MiB, default 32]
//
// Times are those of the slowest rank, each from a barrier to the end of the collective; the table
// has their medians.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "thinwire/tests/support/mpi_ranks.h"

namespace {

using thinwire::testing::MpiRanks;
using Tensors = std::vector<at::Tensor>;
using Collective = std::function<void(c10d::Backend&)>;

constexpr int kWarmUp = 3, kTrials = 15;

// Milliseconds of the slowest rank.
double time_once(const Collective& collective, c10d::Backend& backend, c10d::Backend& control) {
  control.barrier({})->wait();
  const auto begin = std::chrono::steady_clock::now();
  collective(backend);
  const std::chrono::duration<double, std::milli> mine = std::chrono::steady_clock::now() - begin;
  Tensors slowest = {at::full({1}, mine.count(), at::kDouble)};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  control.allreduce(slowest, options)->wait();
  return slowest[0].item<double>();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void compare(const char* name, std::int64_t bytes, const Collective& collective) {
  MpiRanks& ranks = MpiRanks::get();
  std::vector<double> mpi, gloo;
  for (int trial = 0; trial < kWarmUp + kTrials; ++trial) {
    const double of_mpi = time_once(collective, *ranks.mpi, *ranks.gloo);
    const double of_gloo = time_once(collective, *ranks.gloo, *ranks.gloo);
    if (trial < kWarmUp) continue;
    mpi.push_back(of_mpi);
    gloo.push_back(of_gloo);
  }
  if (ranks.rank == 0)
    std::printf("%-11s %12lld %10.3f %10.3f %8.2f\n", name, static_cast<long long>(bytes),
                median(mpi), median(gloo), median(gloo) / median(mpi));
}

}  // namespace

int main(int argc, char** argv) {
  MpiRanks& ranks = MpiRanks::get();
  const std::int64_t largest = (argc > 1 ? std::atoll(argv[1]) : 32) << 20;
  if (ranks.rank == 0)
    std::printf("# %d ranks\n# collective      bytes   mpi (ms)  gloo (ms)  speed-up\n",
                ranks.size);
  for (std::int64_t bytes = 8 << 10; bytes <= largest; bytes *= 16) {
    const std::int64_t numel = bytes / 4;
    Tensors tensors = {at::zeros({numel})};
    Tensors outputs = {at::zeros({ranks.size * numel})};
    std::vector<std::int64_t> equal;
    // Rows for an all_to_all of equal parts.
    at::Tensor in = at::zeros({numel / ranks.size * ranks.size}), out = at::zeros_like(in);
    compare("all_reduce", bytes,
            [&](c10d::Backend& backend) { backend.allreduce(tensors)->wait(); });
    compare("all_gather", bytes, [&](c10d::Backend& backend) {
      backend._allgather_base(outputs[0], tensors[0])->wait();
    });
    compare("all_to_all", bytes,
            [&](c10d::Backend& backend) { backend.alltoall_base(out, in, equal, equal)->wait(); });
    compare("broadcast", bytes,
            [&](c10d::Backend& backend) { backend.broadcast(tensors)->wait(); });
  }
  return 0;
}
