#include "thinwire/torch_ext/ddp/replica_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include <algorithm>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::detail {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RankContext;

std::vector<NamedTensor> tensors_of_rank(int rank, const std::vector<int>& flipped) {
  std::vector<NamedTensor> tensors = {{"first", at::ones({3, 4})}, {"second", at::ones({5})}};
  if (std::ranges::find(flipped, rank) != flipped.end())
    tensors[1].tensor.view(at::kInt)[2].bitwise_xor_(1 + (rank << 8));
  return tensors;
}

std::vector<std::string> errors_where(int world, const std::vector<int>& flipped) {
  return errors_of<CommError>(world, [&](RankContext& ctx) {
    check_replicas(*ctx.group, tensors_of_rank(ctx.rank, flipped), 7);
  });
}

TEST(ReplicaCheck, EqualReplicasPass) {
  EXPECT_THAT(errors_where(3, {}), Each("no error"));
}

TEST(ReplicaCheck, AFlippedBitIsFoundWithItsTensorAndRank) {
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_THAT(
        errors_where(3, {rank}),
        Each(AllOf(HasSubstr("comparing the replicas #7"),
                   HasSubstr(concat("rank ", rank, " is at fault")),
                   HasSubstr(concat("'second' has other bits on rank(s) ", rank, " than")))));
  }
}

TEST(ReplicaCheck, WhereNoValueIsThatOfMostNoRankIsBlamed) {
  EXPECT_THAT(errors_where(2, {1}),
              Each(AllOf(HasSubstr("rank(s) 1 than on 0"), Not(HasSubstr("is at fault,")),
                         Not(HasSubstr("rank 1 is at fault")))));
}

}  // namespace
}  // namespace thinwire::detail
