// Groups that leave a process out, which takes three.
#include <gmock/gmock.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/comm/backend/mpi/mpi_groups.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;
using MpiGroupsOfThree = testing::MpiGroups;

TEST_F(MpiGroupsOfThree, OfFewerProcessesNumberThemAsTheyLike) {
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

// Of those that a group is made of, one does not come.
TEST_F(MpiGroupsOfThree, ThatNotAllMakeFailAtTheTimeout) {
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

}  // namespace
}  // namespace thinwire::comm
