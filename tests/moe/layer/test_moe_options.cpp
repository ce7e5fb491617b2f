// What the options of a layer that no other test looks at do: here by hand, on one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/moe/router/losses.h"

namespace thinwire::moe {
namespace {

constexpr std::int64_t kDim = 6;

MoEOptions options_of(std::int64_t experts, std::int64_t top_k) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = experts, .top_k = top_k};
  options.hidden = 5;
  options.seed = 3;
  return options;
}

at::Tensor tokens(std::int64_t count) {
  return at::randn({count, kDim}, at::detail::createCPUGenerator(1), at::kFloat);
}

// One expert that every token goes to with weight 1.
TEST(MoEOptions, TheActivationIsThatOfTheExperts) {
  const std::pair<Activation, std::function<at::Tensor(const at::Tensor&)>> cases[] = {
      {Activation::kRelu, [](const at::Tensor& x) { return at::relu(x); }},
      {Activation::kGelu, [](const at::Tensor& x) { return at::gelu(x); }},
      {Activation::kSilu, [](const at::Tensor& x) { return at::silu(x); }},
      {Activation::kSwiGlu,
       [](const at::Tensor& x) { return at::silu(x.narrow(1, 0, 5)) * x.narrow(1, 5, 5); }}};
  for (const auto& [activation, function] : cases) {
    MoEOptions options = options_of(1, 1);
    options.activation = activation;
    MoELayer layer(options, {});
    const NamedTensors state = layer.full_state();
    const auto of = [&](const char* name) { return state.at(std::string("experts.0.") + name); };
    const at::Tensor x = tokens(7);
    const at::Tensor expected =
        at::matmul(function(at::matmul(x, of("w1")) + of("b1")), of("w2")) + of("b2");
    EXPECT_TRUE(at::allclose(layer.forward(x).output, expected, 1e-4, 1e-6))
        << static_cast<int>(activation);
  }
}

TEST(MoEOptions, WithoutBiasThereIsNone) {
  for (const bool bias : {true, false}) {
    MoEOptions options = options_of(2, 1);
    options.bias = bias;
    MoELayer layer(options, {});
    EXPECT_EQ(layer.named_parameters().contains("experts.b1"), bias);
    EXPECT_EQ(layer.named_parameters().contains("experts.b2"), bias);
    // Without any, nothing comes of nothing.
    {
      const at::NoGradGuard no_grad;
      for (at::Tensor& parameter : layer.parameters()) parameter.add_(1);
    }
    EXPECT_EQ(layer.forward(at::zeros({3, kDim})).output.abs().max().item<float>() > 0, bias);
  }
}

TEST(MoEOptions, TheBalanceLossIsTheChosenOne) {
  const at::Tensor x = tokens(40);
  Router router({.dim = kDim, .experts = 4, .top_k = 2, .seed = 3});
  const Routing routing = router.forward(x);
  const double switched = switch_balance_loss(routing, 4).item<double>();
  const double of_gshard = gshard_balance_loss(routing, 4).item<double>();
  ASSERT_GT(std::abs(switched - of_gshard), 1e-3);
  for (const BalanceLoss balance : {BalanceLoss::kSwitch, BalanceLoss::kGShard}) {
    MoEOptions options = options_of(4, 2);
    options.balance = balance;
    options.balance_factor = 0.5;
    MoELayer layer(options, {});
    const MoEOutput result = layer.forward(x);
    const double expected = balance == BalanceLoss::kSwitch ? switched : of_gshard;
    EXPECT_NEAR(result.balance_loss.item<double>(), expected, 1e-5);
    EXPECT_NEAR(result.loss.item<double>(), 0.5 * expected, 1e-5);
  }
}

// All four tokens want the first expert, which has room for one; the last one wants it most.
TEST(MoEOptions, WhoIsDroppedFollowsThePolicy) {
  for (const DropPolicy drop : {DropPolicy::kPosition, DropPolicy::kProbability}) {
    MoEOptions options = options_of(2, 1);
    options.capacity_factor = 0.5;
    options.drop = drop;
    MoELayer layer(options, {});
    {
      const at::NoGradGuard no_grad;
      layer.named_parameters()["router.weight"].zero_()[0][0] = 1;
    }
    at::Tensor x = at::zeros({4, kDim});
    for (int token = 0; token < 4; ++token) x[token][0] = token + 1;
    const MoEOutput result = layer.forward(x);
    EXPECT_EQ(result.counters.dropped, 3);
    for (int token = 0; token < 4; ++token) {
      const bool kept = token == (drop == DropPolicy::kPosition ? 0 : 3);
      EXPECT_EQ(result.output[token].abs().max().item<float>() > 0, kept) << token;
    }
  }
}

}  // namespace
}  // namespace thinwire::moe
