// What an averager holds, by its own count and by the kernel's.
#include <gtest/gtest.h>
#include <malloc.h>

#include <barrier>
#include <fstream>
#include <string>

#include "averager_fixture.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/tests/support/sanitized.h"

namespace thinwire::comm {
namespace {

using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;

constexpr int kRanks = 2;
constexpr std::size_t kBuckets = 24;
constexpr std::int64_t kSide = 512;
constexpr double kParameters = kBuckets * kSide * kSide;

double resident() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return 1024.0 * std::stod(line.substr(6));
  }
  return 0;
}

struct Case {
  const char* spec;
  double most;  // bytes a parameter
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.spec;
}

class Memory : public ::testing::TestWithParam<Case> {
 protected:
  // Large blocks go back to the kernel when they are freed: what an earlier case has left in the
  // allocator would be counted, or be found by a later one.
  static void SetUpTestSuite() { mallopt(M_MMAP_THRESHOLD, 1 << 16); }
};

// One residual a layer, a share of the second one, and what two buckets on their way need.
TEST_P(Memory, IsWhatFeedbackNeedsAndLittleMore) {
  std::barrier meeting(kRanks);
  double before = 0, after = 0;
  AveragerMemory held;
  run_ranks(kRanks, [&](RankContext& ctx) {
    Plan plan;
    std::vector<Bucket> buckets;
    for (std::size_t i = 0; i < kBuckets; ++i) {
      const std::string name = "w" + std::to_string(i);
      plan.set(name, parse_layer_setting(GetParam().spec));
      buckets.push_back(random_bucket({{name, {kSide, kSide}}}, i, ctx.rank));
      buckets.back().index = i;
    }
    meeting.arrive_and_wait();
    if (ctx.rank == 0) before = resident();
    meeting.arrive_and_wait();
    BucketAverager averager(ctx.group);
    for (std::int64_t step = 0; step < 3; ++step) {
      BucketInFlight* last = nullptr;
      for (const Bucket& bucket : buckets) {
        BucketInFlight& begun = averager.begin(bucket, plan, step);
        if (last) averager.finish(*last);
        averager.advance(begun);
        last = &begun;
      }
      averager.finish(*last);
      averager.agree();
    }
    meeting.arrive_and_wait();
    if (ctx.rank == 0) {
      after = resident();
      held = averager.memory();
    }
    meeting.arrive_and_wait();
  });
  const double each = static_cast<double>(held.total()) / kParameters;
  EXPECT_LE(each, GetParam().most);
  if (std::string_view(GetParam().spec) == "none") return;
  EXPECT_EQ(static_cast<double>(held.residuals) / kParameters, 4);
  if (THINWIRE_SANITIZED) return;  // which keep memory of their own
  const double by_kernel = (after - before) / kRanks / kParameters;
  EXPECT_NEAR(each, by_kernel, 0.15 * by_kernel + 0.2);
}

INSTANTIATE_TEST_SUITE_P(Codecs, Memory,
                         ::testing::Values(Case{"none", 0.05}, Case{"topk(density=0.01)", 7.5},
                                           Case{"powersgd(rank=4)", 7.5},
                                           Case{"onebit(bucket=64)", 7.5},
                                           Case{"quantize(bits=4)", 7.5},
                                           Case{"ternary(density=0.01)", 7.5}));

}  // namespace
}  // namespace thinwire::comm
