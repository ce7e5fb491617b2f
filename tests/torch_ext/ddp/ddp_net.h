// A model for tests of data-parallel training, its data, and what training it alone gives.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/nn/module.h>
#include <torch/optim/sgd.h>

#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire::testing {

// Two layers and one that may stay unused; forward gives a pair, to exercise "any signature".
struct Net : torch::nn::Module {
  explicit Net(std::uint64_t seed, std::int64_t hidden = 48) {
    auto generator = at::detail::createCPUGenerator(seed);
    const auto random = [&](at::IntArrayRef shape) {
      return (at::randn(shape, generator, at::kDouble) * 0.2).to(at::kFloat);
    };
    first = register_parameter("first", random({hidden, 32}));
    bias = register_parameter("bias", random({hidden}));
    second = register_parameter("second", random({1, hidden}));
    spare = register_parameter("spare", random({40, 40}));
    seen = register_buffer("seen", at::zeros({1}));
  }
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& x, bool use_spare) {
    const auto h = at::relu(at::linear(x, first, bias));
    auto y = at::linear(h, second);
    if (use_spare) y = y + spare.sum() * 0.01;
    return {y, h};
  }
  at::Tensor first, bias, second, spare, seen;
};

using Ddp = DistributedDataParallel<std::shared_ptr<Net>>;

inline at::Tensor inputs(int rank, int step) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 * step + rank));
  return at::randn({16, 32}, generator, at::kFloat);
}

inline at::Tensor loss_of(const at::Tensor& y, const at::Tensor& x) {
  return (y - x.narrow(1, 0, 4).sum(1, true)).pow(2).mean();
}

inline void train_step(Ddp& ddp, torch::optim::SGD& optimizer, int rank, int step,
                       bool use_spare = true) {
  ddp.zero_grad();
  const auto x = inputs(rank, step);
  loss_of(ddp.forward(x, use_spare).first, x).backward();
  optimizer.step();
}

// One process with the batches of all ranks.
inline std::shared_ptr<Net> trained_alone(int world, int steps, bool use_spare = true) {
  auto net = std::make_shared<Net>(1);
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    for (int rank = 0; rank < world; ++rank) {
      const auto x = inputs(rank, step);
      (loss_of(net->forward(x, use_spare).first, x) / world).backward();
    }
    optimizer.step();
  }
  return net;
}

// Of all ranks' losses at one step, the gradients of a model alone.
template <typename Loss>
std::shared_ptr<Net> gradients_alone(int world, const Loss& loss) {
  auto net = std::make_shared<Net>(1);
  for (int rank = 0; rank < world; ++rank) (loss(*net, rank) / world).backward();
  return net;
}

inline void expect_same_parameters(const Net& found, const Net& expected) {
  for (const auto& item : expected.named_parameters()) {
    const auto difference = found.named_parameters()[item.key()] - item.value();
    EXPECT_LE(difference.abs().max().item<double>(), 1e-5) << item.key();
  }
}

inline void expect_same_gradients(const Net& found, const Net& expected) {
  for (const auto& item : expected.named_parameters()) {
    const auto gradient = found.named_parameters()[item.key()].grad();
    ASSERT_EQ(gradient.defined(), item.value().grad().defined()) << item.key();
    if (!gradient.defined()) continue;
    EXPECT_LE((gradient - item.value().grad()).abs().max().item<double>(), 1e-5) << item.key();
  }
}

}  // namespace thinwire::testing
