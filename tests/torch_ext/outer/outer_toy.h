// What the tests of outer steps train.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace thinwire::testing {

// Weights that are moved by made-up gradients, a function of rank and step.
struct Toy : torch::nn::Module {
  explicit Toy(at::ScalarType dtype = at::kFloat) {
    const auto generator = at::detail::createCPUGenerator(7);
    const auto values = [&](at::IntArrayRef shape) {
      return at::randn(shape, generator, at::kFloat).to(dtype);
    };
    big = register_parameter("lora_A", values({60, 40}));
    small = register_parameter("lora_B", values({50, 30}).mul(0.001));
    bias = register_parameter("bias", values({50}));
    frozen = register_parameter("frozen", values({4}), /*requires_grad=*/false);
    counts = register_buffer("counts", at::zeros({3}));
  }
  void set_gradients(int rank, std::int64_t step) {
    const auto generator =
        at::detail::createCPUGenerator(static_cast<std::uint64_t>(1000 + 100 * rank + step));
    for (at::Tensor* parameter : {&big, &small, &bias}) {
      const auto values = at::randn(parameter->sizes(), generator, at::kFloat);
      parameter->mutable_grad() = values.to(parameter->options());
    }
  }
  at::Tensor flat() const {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& p : parameters())
      if (p.requires_grad()) parts.push_back(p.detach().flatten().to(at::kFloat));
    return at::cat(parts);
  }
  at::Tensor big, small, bias, frozen, counts;
};

inline constexpr double kRate = 0.1;

// Trains `steps` inner steps and returns the optimizer's last state.
inline OuterState train(RankContext& ctx, Toy& toy, const OuterOptimizerOptions& options,
                        int steps) {
  torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
  OuterOptimizer optimizer(toy, inner, ctx.group, options);
  for (int step = 0; step < steps; ++step) {
    toy.set_gradients(ctx.rank, step);
    optimizer.step();
  }
  return optimizer.state();
}

inline void expect_same_on_all(RankContext& ctx, const at::Tensor& mine) {
  std::vector<std::vector<at::Tensor>> all(1);
  for (int r = 0; r < ctx.size; ++r) all[0].push_back(at::empty_like(mine));
  std::vector<at::Tensor> in = {mine};
  ctx.group->allgather(all, in)->wait();
  for (const at::Tensor& other : all[0]) EXPECT_TRUE(at::equal(other, mine));
}

}  // namespace thinwire::testing
