// DistributedDataParallel over MPI, whose ranks are processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/tests/support/mpi_ranks.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using testing::Ddp;
using testing::Net;

struct Case {
  const char* name;
  bool static_graph, find_unused, use_spare;
};

class OverMpi : public ::testing::TestWithParam<Case> {};

TEST_P(OverMpi, EqualsOneProcessWithAllBatches) {
  const testing::MpiRanks& ranks = testing::MpiRanks::get();
  const auto group = comm::make_process_group(
      "mpi", c10::make_intrusive<c10d::PrefixStore>(GetParam().name, ranks.store), ranks.rank,
      ranks.size, {.timeout = std::chrono::seconds(30)});
  const auto alone = testing::trained_alone(ranks.size, 6, GetParam().use_spare);
  auto net = std::make_shared<Net>(static_cast<std::uint64_t>(ranks.rank) + 1);
  Ddp ddp(net, group,
          {.bucket_cap_mb = 0.004,  // several buckets
           .find_unused_parameters = GetParam().find_unused,
           .static_graph = GetParam().static_graph});
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  for (int step = 0; step < 6; ++step) {
    testing::train_step(ddp, optimizer, ranks.rank, step, GetParam().use_spare);
    EXPECT_EQ(ddp.summary().steps, step + 1);
  }
  EXPECT_EQ(net->spare.grad().defined(), GetParam().use_spare);
  testing::expect_same_parameters(*net, *alone);
  EXPECT_TRUE(ddp.replicas_equal());
}

INSTANTIATE_TEST_SUITE_P(Graphs, OverMpi,
                         ::testing::Values(Case{"as_it_comes", false, false, true},
                                           Case{"find_unused", false, true, false},
                                           Case{"static", true, false, true},
                                           Case{"static_and_unused", true, false, false}),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace thinwire
