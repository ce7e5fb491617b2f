// What the options of DistributedDataParallel that no other test looks at do.
#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <string>

#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using testing::Ddp;
using testing::Net;
using testing::RankContext;
using testing::run_ranks;

// Views of one bucket share its memory, gradients of their own do not.
TEST(DdpOptions, GradientsAreViewsOfTheBucketsWhereAsked) {
  for (const bool views : {true, false}) {
    run_ranks(2, [&](RankContext& ctx) {
      auto net = std::make_shared<Net>(1);
      Ddp ddp(net, ctx.group, {.gradient_as_bucket_view = views});
      torch::optim::SGD optimizer(net->parameters(), 0.05);
      testing::train_step(ddp, optimizer, ctx.rank, 0);
      EXPECT_EQ(net->first.grad().storage().is_alias_of(net->second.grad().storage()), views);
    });
  }
}

// Threads of this process that may run on this CPU and no other.
int threads_on(int cpu) {
  int count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    cpu_set_t set;
    CPU_ZERO(&set);
    const pid_t thread = std::stoi(task.path().filename().string());
    if (sched_getaffinity(thread, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1 &&
        CPU_ISSET(static_cast<std::size_t>(cpu), &set))
      ++count;
  }
  return count;
}

TEST(DdpOptions, TheCommunicationThreadStaysOnItsCpus) {
  cpu_set_t mine;
  ASSERT_EQ(sched_getaffinity(0, sizeof mine, &mine), 0);
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(static_cast<std::size_t>(last), &mine)) --last;
  run_ranks(1, [&](RankContext& ctx) {
    const int before = threads_on(last);
    const Ddp ddp(std::make_shared<Net>(1), ctx.group, {.communication_cpus = {last}});
    EXPECT_EQ(threads_on(last), before + 1);
  });
}

TEST(DdpOptions, TheSeedIsThatOfTheCodecs) {
  const auto trained = [](std::uint64_t seed) {
    at::Tensor weights;
    run_ranks(2, [&](RankContext& ctx) {
      CompressionOptions compression("quantize(bits=2, rounding=stochastic)");
      compression.seed = seed;
      auto net = std::make_shared<Net>(1);
      Ddp ddp(net, ctx.group, {.compression = compression});
      torch::optim::SGD optimizer(net->parameters(), 0.05);
      for (int step = 0; step < 2; ++step) testing::train_step(ddp, optimizer, ctx.rank, step);
      if (ctx.rank == 0) weights = net->first.detach().clone();
    });
    return weights;
  };
  const at::Tensor first = trained(1);
  EXPECT_TRUE(at::equal(first, trained(1)));
  EXPECT_FALSE(at::equal(first, trained(2)));
}

}  // namespace
}  // namespace thinwire
