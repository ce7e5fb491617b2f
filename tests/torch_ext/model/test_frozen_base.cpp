#include "thinwire/torch_ext/model/frozen_base.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/torch_ext/adapter/lora.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;
namespace nn = torch::nn;

// A base with batch-norm statistics, drawn from a seed.
nn::Sequential base_of(std::uint64_t seed) {
  nn::Sequential net(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::Linear(8, 2));
  const auto generator = at::detail::createCPUGenerator(seed);
  at::NoGradGuard no_grad;
  for (at::Tensor& parameter : net->parameters())
    parameter.copy_(at::randn(parameter.sizes(), generator, at::kFloat));
  return net;
}

at::Tensor mean_of(nn::Sequential& net) {
  return net->named_buffers()["1.running_mean"];
}

TEST(FrozenBase, DifferentBasesAreAnErrorAtConstruction) {
  const auto errors = [](const std::function<void(nn::Sequential&)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      nn::Sequential net = base_of(1);
      if (ctx.rank == 1) {
        at::NoGradGuard no_grad;
        change(net);
      }
      Lora lora(net.ptr(), LoraOptions{.rank = 2});
      torch::optim::SGD inner(lora.parameters(), torch::optim::SGDOptions(0.1));
      OuterOptimizer optimizer(lora, inner, ctx.group);
    });
  };
  const auto differs = Each(AllOf(HasSubstr("base of the module has the hash")));
  EXPECT_THAT(errors([](auto& net) { net->parameters()[0][0][0] += 1e-6; }), differs);
  EXPECT_THAT(errors([](auto& net) { mean_of(net)[3] = 1; }), differs);
  EXPECT_THAT(errors([](auto& net) { net = base_of(2); }), differs);
  EXPECT_THAT(errors([](auto&) {}), Each("no error"));
}

TEST(FrozenBase, IsGivenToAllOnRequest) {
  run_ranks(3, [](RankContext& ctx) {
    nn::Sequential net = base_of(10 + static_cast<std::uint64_t>(ctx.rank)), expected = base_of(12);
    mean_of(net).fill_(ctx.rank);
    // The adapter may be a child.
    struct Holder : nn::Module {
      explicit Holder(std::shared_ptr<Lora> lora) { register_module("adapter", std::move(lora)); }
    };
    const auto lora = std::make_shared<Lora>(net.ptr(), LoraOptions{.rank = 2});
    const Holder holder(lora);
    broadcast_base(holder, ctx.group, 2);
    for (const auto& item : net->named_parameters())
      EXPECT_TRUE(at::equal(item.value(), expected->named_parameters()[item.key()])) << item.key();
    EXPECT_EQ(mean_of(net).min().item<float>(), 2);
    torch::optim::SGD inner(lora->parameters(), torch::optim::SGDOptions(0.1));
    const OuterOptimizer optimizer(*lora, inner, ctx.group);  // accepts them
  });
  EXPECT_THAT(errors_of<InvalidArgument>(2,
                                         [](RankContext& ctx) {
                                           nn::Linear net(2, 2);
                                           broadcast_base(*net, ctx.group);
                                         }),
              Each(HasSubstr("there is no base")));
  EXPECT_THAT(errors_of<InvalidArgument>(2,
                                         [](RankContext& ctx) {
                                           nn::Sequential net(nn::Linear(2, ctx.rank + 1));
                                           const Lora lora(net.ptr(), LoraOptions{.rank = 2});
                                           broadcast_base(lora, ctx.group);
                                         }),
              Each(HasSubstr("[2, 2]")));
}

// What every rank has of its own, as a MoELayer its experts, is neither compared nor overwritten.
TEST(FrozenBase, WhatARankHasOfItsOwnStays) {
  run_ranks(2, [](RankContext& ctx) {
    nn::Sequential net = base_of(5);
    const auto value = static_cast<float>(ctx.rank);
    const auto own = net->register_parameter("expert", at::full({7}, value));
    const auto own_buffer = net->register_buffer("load", at::full({3}, value));
    comm::mark_rank_local(own);
    comm::mark_rank_local(own_buffer);
    const auto lora =
        std::make_shared<Lora>(net.ptr(), LoraOptions{.rank = 2, .target_modules = {"2"}});
    broadcast_base(*lora, ctx.group);
    torch::optim::SGD inner(lora->parameters(), torch::optim::SGDOptions(0.1));
    const OuterOptimizer optimizer(*lora, inner, ctx.group, {.compression = "none"});
    DistributedDataParallel<std::shared_ptr<Lora>> ddp(lora, ctx.group);
    ddp.forward(net, at::ones({4, 6})).sum().backward();
    EXPECT_TRUE((own == value).all().item<bool>());
    EXPECT_TRUE((own_buffer == value).all().item<bool>());
  });
}

TEST(FrozenBase, IsComparedByDataParallelTrainingToo) {
  EXPECT_THAT(errors_of<InvalidArgument>(
                  2,
                  [](RankContext& ctx) {
                    nn::Sequential net = base_of(1 + static_cast<std::uint64_t>(ctx.rank));
                    const auto lora = std::make_shared<Lora>(net.ptr(), LoraOptions{.rank = 2});
                    DistributedDataParallel<std::shared_ptr<Lora>> ddp(lora, ctx.group);
                  }),
              Each(HasSubstr("base of the module has the hash")));
  run_ranks(2, [](RankContext& ctx) {
    nn::Sequential net = base_of(5);
    const auto lora =
        std::make_shared<Lora>(net.ptr(), LoraOptions{.rank = 2, .target_modules = {"2"}});
    DistributedDataParallel<std::shared_ptr<Lora>> ddp(lora, ctx.group);
    // The statistics that this forward pass changes are rank 0's in the next one, of which the
    // momentum of 0.1 is known.
    const auto images = at::full({4, 6}, 1.0f + static_cast<float>(ctx.rank));
    ddp.forward(net, images).sum().backward();
    const at::Tensor mine = mean_of(net).clone();
    std::vector<at::Tensor> of_rank_0 = {ctx.rank == 0 ? mine : at::zeros_like(mine)};
    ctx.group->allreduce(of_rank_0)->wait();
    EXPECT_EQ(at::equal(mine, of_rank_0[0]), ctx.rank == 0);
    at::Tensor batch_mean;
    {
      const at::NoGradGuard no_grad;
      batch_mean = net[0]->as<nn::Linear>()->forward(images).mean(0);
    }
    ddp.forward(net, images).sum().backward();
    EXPECT_TRUE(at::allclose(mean_of(net), 0.9 * of_rank_0[0] + 0.1 * batch_mean, 1e-4, 1e-5));
  });
}

// Training in train() mode changes the base's statistics on each rank by itself.
TEST(FrozenBase, BuffersOfTheBaseAreThoseOfRankZeroAfterAnOuterStep) {
  run_ranks(2, [](RankContext& ctx) {
    nn::Sequential net = base_of(5);
    Lora lora(net.ptr(), LoraOptions{.rank = 2, .target_modules = {"2"}});
    torch::optim::SGD inner(lora.parameters(), torch::optim::SGDOptions(0.1));
    OuterOptimizer optimizer(lora, inner, ctx.group, {.inner_steps = 1, .compression = "none"});
    const auto images = at::full({4, 6}, 1.0f + static_cast<float>(ctx.rank));
    inner.zero_grad();
    lora.forward(net, images).sum().backward();
    const at::Tensor mine = mean_of(net).clone();
    optimizer.step();
    EXPECT_EQ(at::equal(mean_of(net), mine), ctx.rank == 0);
    std::vector<at::Tensor> sum = {mean_of(net).clone()};
    ctx.group->allreduce(sum)->wait();
    EXPECT_TRUE(at::allclose(sum[0], 2 * mean_of(net)));
  });
}

}  // namespace
}  // namespace thinwire
