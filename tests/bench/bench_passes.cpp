// What averaging takes of a processor, against the least passes over memory that its result needs:
// two ranks as threads, one layer of 32 MiB, error feedback on where the codec has it.
//
//   bench_passes [SPEC ...]
//
// Seconds are those that the averaging thread computes, so that neither the network nor other
// programs count; the medians of rank 0. `reads` and `stores` are the least, in sizes of the layer:
// gradient and residual are read, the new residual and the mean are stored, and the owner of a half
// does so once more for what its means lose. `least` is what these take at the speed of a plain
// read and a plain store of as much memory, measured between the steps.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/median.h"
#include "thinwire/common/thread_time.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire {
namespace {

constexpr int kWorld = 2, kSteps = 25, kWarmSteps = 4;
constexpr std::int64_t kSide = 2896;  // 32 MiB as a square matrix

struct Case {
  std::string spec;
  double reads, stores;
};

std::vector<Case> cases() {
  constexpr double kOwned = 1.0 / kWorld;
  return {{"none", 1, 1},
          {"cast(bf16)", 1, 1},
          {"quantize(bits=8)", 2 + kOwned, 2 + kOwned},
          {"quantize(bits=4)", 2 + kOwned, 2 + kOwned},
          {"quantize(bits=4, rounding=stochastic)", 1, 1},
          {"onebit", 2 + kOwned, 2 + kOwned},
          {"topk(density=0.01)", 2, 2},
          // The gradient with its residual is read and kept, read for the second factor, and read
          // to take what both factors say of it.
          {"powersgd(rank=4)", 4, 3}};
}

template <typename Body>
double thread_seconds_of(const Body& body) {
  const double begun = thread_seconds();
  body();
  return thread_seconds() - begun;
}

// The speed of memory, in seconds for the bytes of the layer.
class Memory {
 public:
  explicit Memory(std::int64_t numel) : numbers_(at::ones({numel}, at::kFloat).view(at::kLong)) {}

  void measure() {
    auto* const first = numbers_.mutable_data_ptr<std::int64_t>();
    const std::int64_t count = numbers_.numel();
    reads.push_back(thread_seconds_of([&] {
      std::int64_t sums[8] = {};
      for (std::int64_t i = 0; i + 8 <= count; i += 8) {
        for (int lane = 0; lane < 8; ++lane) sums[lane] ^= first[i + lane];
      }
      for (const std::int64_t sum : sums) sink_ = sink_ ^ sum;
    }));
    stores.push_back(thread_seconds_of([&] {
      const std::int64_t value = sink_;
      for (std::int64_t i = 0; i < count; ++i) first[i] = value;
    }));
  }

  std::vector<double> reads, stores;

 private:
  at::Tensor numbers_;
  volatile std::int64_t sink_ = 0;
};

void run(const Case& each) {
  testing::run_ranks(kWorld, [&](testing::RankContext& ctx) {
    comm::BucketAverager averager(ctx.group);
    comm::Plan plan;
    plan.set("w", comm::parse_layer_setting(each.spec));
    auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(ctx.rank));
    const at::Tensor gradient = at::randn({kSide * kSide}, generator, at::kFloat);
    Memory memory(gradient.numel());
    comm::Bucket bucket{0, gradient.clone(), {{"w", 0, {kSide, kSide}}}};
    std::vector<double> begins, advances, finishes, all;
    for (int step = 0; step < kWarmSteps + kSteps; ++step) {
      bucket.buffer.copy_(gradient);
      memory.measure();
      comm::BucketInFlight* in_flight = nullptr;
      const double begin =
          thread_seconds_of([&] { in_flight = &averager.begin(bucket, plan, step); });
      const double advance = thread_seconds_of([&] { averager.advance(*in_flight); });
      const double finish = thread_seconds_of([&] { averager.finish(*in_flight); });
      averager.agree();
      if (step < kWarmSteps) continue;
      begins.push_back(begin);
      advances.push_back(advance);
      finishes.push_back(finish);
      all.push_back(begin + advance + finish);
    }
    if (ctx.rank != 0) return;
    const double least = each.reads * median(memory.reads) + each.stores * median(memory.stores);
    std::printf("%-38s %7.2f %7.2f %7.2f %7.2f   %5.1f %6.1f %7.2f %6.2f\n", each.spec.c_str(),
                1e3 * median(begins), 1e3 * median(advances), 1e3 * median(finishes),
                1e3 * median(all), each.reads, each.stores, 1e3 * least, median(all) / least);
    std::fflush(stdout);
  });
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  at::set_num_threads(1);
  std::printf("%-38s %7s %7s %7s %7s   %5s %6s %7s %6s\n", "# milliseconds", "begin", "advance",
              "finish", "all", "reads", "stores", "least", "times");
  try {
    for (const thinwire::Case& each : thinwire::cases()) {
      bool wanted = argc == 1;
      for (int i = 1; i < argc; ++i) wanted = wanted || each.spec == argv[i];
      if (wanted) thinwire::run(each);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_passes: %s\n", error.what());
    return 1;
  }
  return 0;
}
