#include "thinwire/comm/join/rank_local.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <vector>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

TEST(RankLocal, TheMarkIsOnTheTensorObject) {
  at::Tensor expert = at::zeros({2, 2});
  const at::Tensor other = at::zeros({2, 2});
  EXPECT_FALSE(is_rank_local(expert));
  mark_rank_local(expert);
  mark_rank_local(expert);
  EXPECT_TRUE(is_rank_local(expert));
  EXPECT_FALSE(is_rank_local(other));
  EXPECT_FALSE(is_rank_local(expert.clone()));
  EXPECT_FALSE(is_rank_local(expert.detach()));
  EXPECT_FALSE(is_rank_local(at::Tensor()));
  EXPECT_THROW(mark_rank_local(at::Tensor()), InvalidArgument);
}

TEST(RankLocal, TheMarkOutlivesTheValues) {
  at::Tensor expert = at::zeros({2, 2});
  mark_rank_local(expert);
  expert.set_(at::ones({3, 3}));  // as torch::load() does
  EXPECT_TRUE(is_rank_local(expert));
  expert.set_data(at::ones({3, 3}).to(at::kDouble));  // as module->to(dtype) does
  EXPECT_TRUE(is_rank_local(expert));
}

TEST(RankLocal, TheMarkEndsWithTheTensor) {
  // Allocators like to give the same address again.
  for (int i = 0; i < 100; ++i) {
    const at::Tensor fresh = at::zeros({2});
    EXPECT_FALSE(is_rank_local(fresh)) << i;
    mark_rank_local(fresh);
  }
}

}  // namespace
}  // namespace thinwire::comm
