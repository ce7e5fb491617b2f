// Groups of some of the processes of an MPI job.
#include <gtest/gtest.h>

#include "thinwire/comm/backend/mpi/work.h"
#include "thinwire/comm/backend/split.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/comm/backend/mpi/mpi_groups.h"

namespace thinwire::comm {
namespace {

using MpiGroups = testing::MpiGroups;
using testing::sum_over;

TEST_F(MpiGroups, SplitByColorAndKey) {
  const auto group = all("split");
  const auto parity = split(group, rank_ % 2, -rank_);
  std::int64_t expected = 0;
  int count = 0, place = 0;
  for (int rank = rank_ % 2; rank < size_; rank += 2) {
    expected += rank;
    ++count;
    if (rank > rank_) ++place;
  }
  EXPECT_EQ(backend_name(*parity), "mpi");
  EXPECT_EQ(parity->getSize(), count);
  EXPECT_EQ(parity->getRank(), place);
  EXPECT_EQ(sum_over(*parity, rank_), expected);
  // As any other group.
  const auto copy = duplicate(parity, "copy");
  EXPECT_EQ(sum_over(*copy, rank_), expected);
  EXPECT_EQ(split(copy, 0)->getSize(), count);
  EXPECT_EQ(sum_over(*group, 1), size_);
  const auto first = split(group, rank_ == 0 ? 0 : -1);
  EXPECT_EQ(first != nullptr, rank_ == 0);
}

TEST_F(MpiGroups, C10dSplitsThemToo) {
  std::vector<int> last = {size_ - 1};
  const auto group = ranks_.mpi->split(nullptr, last, nullptr);
  ASSERT_EQ(group != nullptr, rank_ == size_ - 1);
  if (group) {
    EXPECT_EQ(group->getSize(), 1);
  }
  EXPECT_TRUE(ranks_.mpi->supportsSplitting());
  for (const auto& bad : std::vector<std::vector<int>>{{0, 0}, {-1}, {size_}})
    EXPECT_THROW(ranks_.mpi->split(nullptr, bad, nullptr), InvalidArgument);
}

TEST(ScratchPool, GivesWhatNobodyUsesAndNeverTwice) {
  mpi::ScratchPool pool;
  at::Tensor small = pool.take(100);
  const void* small_place = small.data_ptr();
  const at::Tensor large = pool.take(1000);
  EXPECT_NE(large.data_ptr(), small_place);
  // The small one is in use, so this is a new one, and the next as well.
  EXPECT_NE(pool.take(50).data_ptr(), small_place);
  small.reset();
  EXPECT_EQ(pool.take(100).data_ptr(), small_place);
  EXPECT_GE(pool.take(5000).nbytes(), 5000u);
}

}  // namespace
}  // namespace thinwire::comm
