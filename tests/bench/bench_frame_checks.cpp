// What the checksums of frames cost an all-reduce: two ranks as threads over Gloo on the loopback,
// one layer, with the checksums and without them in turn.
//
//   bench_frame_checks [ROUNDS]
//
// Prints for each codec and size the median milliseconds of an average with and without, which
// other programs on the machine blur; the least processor time that the averaging thread takes, and
// what of that are checksums, which they blur less; and the percentage that these are of the same
// processor time and the time of the bytes on a wire of 1 and of 10 Gbit/s. This program's crc32c()
// stands before the library's, which is shared; without checksums it returns 0.
#include <atomic>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/median.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/common/thread_time.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire {
namespace {

std::atomic<bool> checks = true;
thread_local double checking = 0;  // seconds of this thread's processor time

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous) {
  if (!checks) return 0;
  const double begun = thread_seconds();
  const std::uint32_t result = detail::crc32c_chosen()(bytes, previous);
  checking += thread_seconds() - begun;
  return result;
}

namespace {

constexpr int kWorld = 2, kWarmRounds = 3;

struct Figures {
  double with_ms, without_ms, processor_ms, checks_ms, sent_bytes;
};

Figures measure(const std::string& spec, std::int64_t side, int rounds) {
  Figures figures{};
  std::barrier meeting(kWorld);
  testing::RankOptions options;
  options.watchdog = std::chrono::minutes(20);
  testing::run_ranks(
      kWorld,
      [&](testing::RankContext& ctx) {
        comm::Bucket bucket;
        bucket.buffer = at::empty({side * side}, at::kFloat);
        bucket.layers = {{.name = "layer", .offset = 0, .shape = {side, side}}};
        const at::Tensor gradient = at::randn({side * side});
        comm::Plan plan;
        plan.set("layer", comm::parse_layer_setting(spec));
        comm::BucketAverager averager(ctx.group);
        std::int64_t step = 0;
        double least = std::numeric_limits<double>::infinity(), of_checks = 0;
        const auto average = [&](bool with) {
          bucket.buffer.copy_(gradient);
          meeting.arrive_and_wait();
          checks = with;
          meeting.arrive_and_wait();
          const auto begun = Clock::now();
          const double processor = thread_seconds(), checked = checking;
          averager.average(bucket, plan, step++);
          const double seconds = thread_seconds() - processor;
          if (with && step > 2 * kWarmRounds && seconds < least) {
            least = seconds;
            of_checks = checking - checked;
          }
          return 1000 * seconds_since(begun);
        };
        std::vector<double> with, without;
        for (int round = -kWarmRounds; round < rounds; ++round) {
          // Which of the two comes first changes.
          const bool first = round % 2 == 0;
          const double a = average(first), b = average(!first);
          if (round < 0) continue;
          with.push_back(first ? a : b);
          without.push_back(first ? b : a);
        }
        if (ctx.rank == 0)
          figures = {
              median(with), median(without), 1000 * least, 1000 * of_checks,
              static_cast<double>(averager.traffic().sent_bytes) / static_cast<double>(step)};
      },
      options);
  return figures;
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  using namespace thinwire;
  at::set_num_threads(1);
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 60;
  std::printf("%-20s %4s %9s %11s %13s %10s %9s %10s\n", "codec", "MiB", "with/ms", "without/ms",
              "processor/ms", "checks/ms", "1 Gbit/s", "10 Gbit/s");
  for (const char* spec :
       {"cast(bf16)", "quantize(bits=8)", "quantize(bits=4)", "topk(density=0.01)"}) {
    for (const std::int64_t side : {512, 1024, 2048}) {
      const Figures found = measure(spec, side, rounds);
      if (found.checks_ms == 0) {
        std::fputs("the library uses its own crc32c(); build it as a shared library\n", stderr);
        return 1;
      }
      const auto percent_at = [&](double gbits) {
        return 100 * found.checks_ms / (found.processor_ms + found.sent_bytes * 8e-6 / gbits);
      };
      std::printf("%-20s %4.0f %9.3f %11.3f %13.3f %10.3f %8.2f%% %9.2f%%\n", spec,
                  static_cast<double>(side * side) * 4 / (1 << 20), found.with_ms, found.without_ms,
                  found.processor_ms, found.checks_ms, percent_at(1), percent_at(10));
      std::fflush(stdout);
    }
  }
}
