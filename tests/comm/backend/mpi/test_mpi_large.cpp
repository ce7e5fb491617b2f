// Messages whose length is no int, which is what MPI's own calls count with. Takes 5 GiB a rank and
// half a minute, so it is a target of its own: make test-large.
#include <gtest/gtest.h>

#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::comm {
namespace {

TEST(LargeMessages, BeyondTwoGiB) {
  auto& ranks = thinwire::testing::MpiRanks::get();
  c10d::Backend& mpi = *ranks.mpi;
  const std::int64_t numel = (std::int64_t{2} << 30) + 4099;
  std::vector<at::Tensor> tensors = {at::full({numel}, ranks.rank + 1, at::kByte)};
  mpi.allreduce(tensors)->wait();
  const int sum = ranks.size * (ranks.size + 1) / 2;
  EXPECT_EQ(tensors[0].min().item<int>(), sum);
  EXPECT_EQ(tensors[0].max().item<int>(), sum);
  tensors[0].fill_(ranks.rank == 0 ? 7 : 0);
  mpi.broadcast(tensors)->wait();
  EXPECT_EQ(tensors[0].min().item<int>(), 7);
}

}  // namespace
}  // namespace thinwire::comm
