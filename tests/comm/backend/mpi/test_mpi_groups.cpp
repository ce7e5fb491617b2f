// Groups of some of the processes of an MPI job.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/comm/backend/mpi/work.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/backend/split.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/mpi_ranks.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;
using thinwire::testing::MpiRanks;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

std::int64_t sum_over(c10d::ProcessGroup& group, std::int64_t mine) {
  std::vector<at::Tensor> tensors = {at::full({1}, mine, at::kLong)};
  wait(group, group.allreduce(tensors), "the sum", 0);
  return tensors[0].item<std::int64_t>();
}

class MpiGroups : public ::testing::Test {
 protected:
  MpiRanks& ranks_ = MpiRanks::get();
  const int rank_ = ranks_.rank, size_ = ranks_.size;

  c10::intrusive_ptr<c10d::Store> part_of_store(const std::string& name) {
    return c10::make_intrusive<c10d::PrefixStore>(name, ranks_.store);
  }
  GroupPtr all(const std::string& name) {
    return make_process_group("mpi", part_of_store(name), rank_, size_,
                              {.timeout = std::chrono::seconds(30)});
  }
};

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

TEST_F(MpiGroups, OfFewerProcessesNumberThemAsTheyLike) {
  if (size_ < 3) GTEST_SKIP() << "needs a rank to leave out";
  if (rank_ == 0) {
    ranks_.gloo->barrier({})->wait();
    return;
  }
  // All but the first, in reverse.
  const int mine = size_ - 1 - rank_;
  const auto group = make_process_group("mpi", part_of_store("fewer"), mine, size_ - 1,
                                        {.timeout = std::chrono::seconds(30)});
  EXPECT_EQ(group->getRank(), mine);
  std::vector<at::Tensor> tensors = {at::full({1}, rank_, at::kLong)};
  group->broadcast(tensors)->wait();
  EXPECT_EQ(tensors[0].item<std::int64_t>(), size_ - 1);
  ranks_.gloo->barrier({})->wait();
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

// Of those that a group is made of, one does not come.
TEST_F(MpiGroups, ThatNotAllMakeFailAtTheTimeout) {
  if (size_ < 3) GTEST_SKIP() << "needs two ranks that wait for a third";
  const auto backend = ranks_.another();
  backend->setTimeout(std::chrono::milliseconds(500));
  if (rank_ < 2) {
    // In another order than MPI's, so that it is no mere duplicate.
    std::vector<int> ranks = {1, 0, 2};
    std::string text = "no error";
    try {
      backend->split(nullptr, ranks, nullptr);
    } catch (const CommError& error) {
      text = error.what();
    }
    EXPECT_THAT(text, HasSubstr("not all ranks made the group within the timeout"));
  }
  ranks_.gloo->barrier({})->wait();
  if (rank_ == 2) {
    // Late, so that nobody waits in MPI for ever.
    std::vector<int> ranks = {1, 0, 2};
    backend->setTimeout(std::chrono::seconds(30));
    EXPECT_NE(backend->split(nullptr, ranks, nullptr), nullptr);
  }
}

TEST_F(MpiGroups, AFailureIsNamedInRanksOfTheGroup) {
  if (size_ < 4) GTEST_SKIP() << "needs two groups of two";
  const auto pair = split(all("failure"), rank_ / 2);
  if (rank_ < 2) {
    EXPECT_EQ(sum_over(*pair, 1), 2);
  } else {
    std::string text = "no error";
    try {
      if (rank_ == 3)
        raise_collective_failure(*pair, "decoding", 3,
                                 std::make_exception_ptr(FrameError("damaged in transit")));
      sum_over(*pair, 1);
    } catch (const FrameError& error) {
      text = error.what();
    }
    EXPECT_EQ(text, "damaged in transit");
  }
  ranks_.gloo->barrier({})->wait();
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
