// A layer as an ordinary child of a model that DistributedDataParallel trains.

#include <gtest/gtest.h>

#include <torch/nn/modules/linear.h>

#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;

class ScalingExpert : public Expert {
 public:
  explicit ScalingExpert(double value) : Expert("ScalingExpert") {
    weight_ = register_parameter("weight", at::full({kDim}, value));
  }
  at::Tensor forward(const at::Tensor& rows) override { return rows * weight_; }

 private:
  at::Tensor weight_;
};

// A user's model: layers of which one is a mixture.
class Model : public torch::nn::Module {
 public:
  Model(const MoEOptions& options, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    in_ = register_module("in", torch::nn::Linear(kDim, kDim));
    mixture_ = register_module("mixture", std::make_shared<MoELayer>(options, group));
    out_ = register_module("out", torch::nn::Linear(kDim, 2));
    const at::NoGradGuard no_grad;
    std::uint64_t seed = 1;
    for (auto& parameter : in_->parameters()) fill(parameter, seed++);
    for (auto& parameter : out_->parameters()) fill(parameter, seed++);
  }
  at::Tensor forward(const at::Tensor& x) {
    const MoEOutput mixed = mixture_->forward(in_(x));
    return out_(mixed.output).square().mean() + mixed.loss;
  }
  MoELayer& mixture() { return *mixture_; }

 private:
  static void fill(at::Tensor& parameter, std::uint64_t seed) {
    parameter.copy_(at::randn(parameter.sizes(), at::detail::createCPUGenerator(seed)) * 0.4);
  }

  torch::nn::Linear in_{nullptr}, out_{nullptr};
  std::shared_ptr<MoELayer> mixture_;
};

at::Tensor inputs_of(int rank, int step) {
  const auto seed = static_cast<std::uint64_t>(900 + 10 * step + rank);
  return at::randn({8, kDim}, at::detail::createCPUGenerator(seed));
}

// Five experts on two ranks: three and two.
MoEOptions child_options(bool custom) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = 5, .top_k = 2};
  options.hidden = 4;
  options.shared_hidden = 3;
  if (custom) {
    options.factory = [](std::int64_t expert) {
      return std::make_shared<ScalingExpert>(1.0 + 0.1 * static_cast<double>(expert));
    };
  }
  return options;
}

class ChildOfDdp : public ::testing::TestWithParam<bool> {};

TEST_P(ChildOfDdp, TrainsAsWithAveragesByHand) {
  run_ranks(2, [custom = GetParam()](RankContext& context) {
    const auto model = std::make_shared<Model>(child_options(custom), context.group);
    const auto by_hand = std::make_shared<Model>(child_options(custom), context.group);
    DistributedDataParallel ddp(model, context.group, {});
    const auto step_of = [](Model& of) {
      const at::NoGradGuard no_grad;
      for (const at::Tensor& parameter : of.parameters()) {
        if (parameter.grad().defined()) parameter.add_(parameter.grad(), -0.2);
      }
    };
    for (int step = 0; step < 3; ++step) {
      const at::Tensor x = inputs_of(context.rank, step);
      ddp.zero_grad();
      ddp.forward(x).backward();
      step_of(*model);

      by_hand->zero_grad();
      by_hand->forward(x).backward();
      for (const auto& item : by_hand->named_parameters()) {
        if (item.key().starts_with("mixture.experts.")) continue;
        std::vector<at::Tensor> one = {item.value().grad()};
        context.group->allreduce(one)->wait();
        one[0].div_(2);
      }
      step_of(*by_hand);
    }
    const auto expected = by_hand->named_parameters();
    for (const auto& item : model->named_parameters()) {
      EXPECT_TRUE(at::allclose(item.value(), expected[item.key()], 1e-5, 1e-6)) << item.key();
    }
    EXPECT_TRUE(ddp.replicas_equal());
    model->eval();
    EXPECT_FALSE(model->mixture().is_training());
    EXPECT_FALSE(model->mixture().router().is_training());
  });
}

INSTANTIATE_TEST_SUITE_P(Experts, ChildOfDdp, ::testing::Bool());

}  // namespace
}  // namespace thinwire::moe
