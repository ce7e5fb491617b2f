// Routers, balance losses, capacity and placement.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include <ATen/autocast_mode.h>

#include "thinwire/common/error.h"
#include "thinwire/moe/dispatch/expert_placement.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/moe/router/losses.h"
#include "thinwire/moe/rows/row_ops.h"

namespace thinwire::moe {
namespace {

constexpr std::int64_t kExperts = 4;

// A router whose logits are the tokens themselves.
std::shared_ptr<Router> identity_router(RouterOptions options) {
  options.dim = options.experts = kExperts;
  auto router = std::make_shared<Router>(options);
  const at::NoGradGuard no_grad;
  router->parameters()[0].copy_(at::eye(kExperts));
  return router;
}

at::Tensor tokens_of(std::initializer_list<std::initializer_list<double>> rows) {
  std::vector<at::Tensor> all;
  for (const auto& row : rows) all.push_back(at::tensor(std::vector<double>(row), at::kDouble));
  return at::stack(all).to(at::kFloat);
}

using Triples = std::vector<std::array<std::int32_t, 3>>;  // token, expert, choice

Triples triples(const Pairs& pairs) {
  Triples all;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    all.push_back({pairs.token[i], pairs.expert[i], pairs.choice[i]});
  }
  return all;
}

TEST(Router, TakesTheLargestScoresAndTheLowerExpertOnTies) {
  const auto router = identity_router({.top_k = 2});
  const at::Tensor tokens = tokens_of({{0, 3, 1, 2}, {1, 1, 1, 1}});
  const Routing routing = router->forward(tokens);
  EXPECT_EQ(triples(routing.pairs), (Triples{{0, 1, 0}, {0, 3, 1}, {1, 0, 0}, {1, 1, 1}}));
  const double odds = std::exp(1.0);
  EXPECT_NEAR(routing.weight[0].item<double>(), odds / (1 + odds), 1e-6);
  EXPECT_NEAR(routing.weight[1].item<double>(), 1 / (1 + odds), 1e-6);
  EXPECT_NEAR(routing.weight[2].item<double>(), 0.5, 1e-6);

  const Routing raw = identity_router({.top_k = 2, .normalize = false})->forward(tokens);
  EXPECT_NEAR(raw.weight[2].item<double>(), 0.25, 1e-6);
  const Routing sigmoid =
      identity_router({.top_k = 1, .score = Score::kSigmoid, .normalize = false})->forward(tokens);
  EXPECT_NEAR(sigmoid.weight[0].item<double>(), 1 / (1 + std::exp(-3.0)), 1e-6);
}

TEST(Router, SwitchGivesTheProbabilityItself) {
  const auto router = identity_router({.top_k = 1, .gate = Gate::kSwitch});
  const at::Tensor tokens = tokens_of({{0, 2, 0, 0}});
  const Routing routing = router->forward(tokens);
  EXPECT_NEAR(routing.weight[0].item<double>(), std::exp(2.0) / (std::exp(2.0) + 3), 1e-6);
  EXPECT_THROW(identity_router({.top_k = 2, .gate = Gate::kSwitch}), InvalidArgument);
}

TEST(Router, JitterIsOnTheInputsOfASwitchInTrainingAlone) {
  const auto router = identity_router({.top_k = 1, .gate = Gate::kSwitch, .jitter = 0.5});
  const at::Tensor tokens = tokens_of({{0, 2, 0, 0}}).repeat({1000, 1});
  at::manual_seed(3);
  const at::Tensor logits = router->forward(tokens).logits.select(1, 1);
  EXPECT_NEAR(logits.min().item<double>(), 1, 0.05);
  EXPECT_NEAR(logits.max().item<double>(), 3, 0.05);
  router->eval();
  EXPECT_TRUE(at::allclose(router->forward(tokens).logits.select(1, 1), at::full({1000}, 2.0f)));
}

TEST(Router, TheWeightFactorIsOnAllWeights) {
  const at::Tensor tokens = tokens_of({{0, 2, 1, 0}, {3, 0, 0, 1}});
  const at::Tensor plain = identity_router({.top_k = 2})->forward(tokens).weight;
  const auto router = identity_router({.top_k = 2, .weight_factor = 2.5});
  EXPECT_TRUE(at::allclose(router->forward(tokens).weight, 2.5 * plain));
}

TEST(Router, OneChoiceKeepsItsScoreAsWeight) {
  const auto router = identity_router({.top_k = 1});  // normalize stays at its default
  const Routing routing = router->forward(tokens_of({{0, 2, 0, 0}}));
  EXPECT_NEAR(routing.weight[0].item<double>(), std::exp(2.0) / (std::exp(2.0) + 3), 1e-6);
  routing.weight.sum().backward();
  EXPECT_GT(router->parameters()[0].grad().abs().max().item<double>(), 0.1);
}

TEST(Router, GShardDropsWeakSecondExpertsInTrainingOnly) {
  const auto router = identity_router({.top_k = 2, .gate = Gate::kGShard});
  // The second expert has weight 0.1, so it is kept with probability 0.2.
  const at::Tensor tokens = tokens_of({{std::log(9.0), 0, -50, -50}}).expand({4000, kExperts});
  at::manual_seed(1);
  const auto kept = static_cast<double>(router->forward(tokens).pairs.size()) - 4000;
  EXPECT_NEAR(kept, 800, 4 * std::sqrt(4000 * 0.2 * 0.8));
  router->eval();
  EXPECT_EQ(router->forward(tokens).pairs.size(), 8000u);
}

TEST(Router, NoiseOnlyInTraining) {
  const auto router = identity_router({.top_k = 1, .gate = Gate::kNoisyTopK});
  const at::Tensor tokens = tokens_of({{0.5, 0, 0, 0}}).expand({1000, kExperts});
  at::manual_seed(2);
  std::map<std::int32_t, int> counts;
  for (const std::int32_t expert : router->forward(tokens).pairs.expert) ++counts[expert];
  EXPECT_EQ(counts.size(), 4u);
  EXPECT_GT(counts[0], counts[1]);
  router->eval();
  for (const std::int32_t expert : router->forward(tokens).pairs.expert) EXPECT_EQ(expert, 0);
}

TEST(Router, ExpertChoiceGivesEveryExpertItsBestTokens) {
  const auto router = identity_router({.top_k = 1, .gate = Gate::kExpertChoice});
  const at::Tensor tokens = tokens_of({{9, 0, 0, 0},
                                       {0, 9, 0, 0},
                                       {0, 0, 9, 0},
                                       {0, 0, 0, 9},
                                       {8, 0, 0, 0},
                                       {0, 8, 0, 0},
                                       {0, 0, 8, 0},
                                       {0, 0, 0, 8}});
  const Routing routing = router->forward(tokens);
  EXPECT_EQ(
      triples(routing.pairs),
      (Triples{
          {0, 0, 0}, {4, 0, 0}, {1, 1, 0}, {5, 1, 0}, {2, 2, 0}, {6, 2, 0}, {3, 3, 0}, {7, 3, 0}}));
  at::Tensor with_nan = tokens.clone();
  with_nan[0].fill_(std::numeric_limits<float>::quiet_NaN());
  for (const std::int32_t token : router->forward(with_nan).pairs.token) EXPECT_NE(token, 0);
}

TEST(Router, BiasEvensOutTheLoadWithoutChangingWeights) {
  const auto router = identity_router({.top_k = 1, .gate = Gate::kSigmoidBias, .bias_step = 0.4});
  const at::Tensor tokens = tokens_of({{1, 0.5, 0, 0}, {1, 0, 0, 0}, {1, 0.5, 0, 0}, {1, 0, 0, 0}});
  const Routing before = router->forward(tokens);
  EXPECT_EQ(before.pairs.expert, (std::vector<std::int32_t>{0, 0, 0, 0}));
  router->update_bias({4, 0, 0, 0});
  // sigmoid(1) - 0.4 is now below sigmoid(0.5) + 0.4 and sigmoid(0) + 0.4.
  const Routing after = router->forward(tokens);
  EXPECT_EQ(after.pairs.expert, (std::vector<std::int32_t>{1, 1, 1, 1}));
  EXPECT_NEAR(after.weight[0].item<double>(), 1 / (1 + std::exp(-0.5)), 1e-6);
  EXPECT_THROW(identity_router({})->update_bias({1, 1, 1, 1}), InvalidArgument);
}

TEST(Router, PaddingAndNaNTokens) {
  const auto router = identity_router({.top_k = 2});
  at::Tensor tokens = tokens_of({{0, 3, 1, 2}, {4, 1, 1, 1}, {0, 0, 5, 6}});
  tokens[1].fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor padding = at::tensor({1, 0, 0}, at::kInt).to(at::kBool);
  const Routing routing = router->forward(tokens, padding);
  EXPECT_EQ(triples(routing.pairs), (Triples{{1, 0, 0}, {1, 1, 1}, {2, 3, 0}, {2, 2, 1}}));
  EXPECT_TRUE(std::isnan(routing.weight[0].item<double>()));
  EXPECT_TRUE(std::isfinite(routing.weight[2].item<double>()));
  EXPECT_EQ(routing.probabilities.size(0), 2);
}

TEST(Router, ComputesInFullPrecisionUnderAutocast) {
  Router router({.dim = 64, .experts = 32, .top_k = 2});
  const at::Tensor tokens = at::randn({512, 64}, at::detail::createCPUGenerator(5));
  const Routing expected = router.forward(tokens);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const Routing actual = router.forward(tokens);
  const at::ScalarType elsewhere = at::mm(tokens, tokens.t()).scalar_type();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  ASSERT_EQ(elsewhere, at::kBFloat16);  // autocast was on
  EXPECT_EQ(triples(actual.pairs), triples(expected.pairs));
  EXPECT_TRUE(at::equal(actual.weight, expected.weight));
}

TEST(Router, GateNames) {
  EXPECT_EQ(gate_of("sigmoid_bias"), Gate::kSigmoidBias);
  EXPECT_EQ(name_of(Gate::kExpertChoice), "expert_choice");
  EXPECT_THROW(gate_of("swich"), InvalidArgument);
}

TEST(Losses, ClosedForms) {
  // Two tokens for expert 0 and two for expert 1, each with a probability near 1.
  const auto router = identity_router({.top_k = 1});
  const Routing routing =
      router->forward(tokens_of({{40, 0, 0, 0}, {40, 0, 0, 0}, {0, 40, 0, 0}, {0, 40, 0, 0}}));
  EXPECT_NEAR(switch_balance_loss(routing, kExperts).item<double>(), 2.0, 1e-5);
  EXPECT_NEAR(gshard_balance_loss(routing, kExperts).item<double>(), 2.0, 1e-5);
  EXPECT_NEAR(router_z_loss(routing).item<double>(), 1600.0, 1e-2);
  // Importance (2, 2, 0, 0): mean 1, variance 1.
  EXPECT_NEAR(importance_loss(routing, kExperts).item<double>(), 1.0, 1e-5);

  const Routing even = router->forward(at::eye(kExperts) * 40);
  EXPECT_NEAR(switch_balance_loss(even, kExperts).item<double>(), 1.0, 1e-5);
  EXPECT_NEAR(importance_loss(even, kExperts).item<double>(), 0.0, 1e-6);

  // With k = 2 only the first choices count for gshard.
  const Routing two = identity_router({.top_k = 2})->forward(tokens_of({{2, 1, 0, 0}}));
  const at::Tensor p = two.probabilities[0];
  EXPECT_NEAR(gshard_balance_loss(two, kExperts).item<double>(), 4 * p[0].item<double>(), 1e-6);
  EXPECT_NEAR(switch_balance_loss(two, kExperts).item<double>(), 2 * (p[0] + p[1]).item<double>(),
              1e-6);

  const Routing none = router->forward(at::zeros({0, kExperts}));
  for (const auto& loss : {switch_balance_loss(none, kExperts), router_z_loss(none),
                           importance_loss(none, kExperts)}) {
    EXPECT_EQ(loss.item<double>(), 0.0);
    EXPECT_TRUE(loss.requires_grad());
  }
}

TEST(Losses, ReachTheRouterThroughTheLayer) {
  MoEOptions options;
  options.router = {.dim = 6, .experts = 3, .top_k = 2};
  options.hidden = 4;
  options.balance_factor = 0.5;
  options.z_factor = 0.25;
  options.importance_factor = 2;
  MoELayer layer(options, {});
  const MoEOutput result = layer.forward(at::randn({9, 6}));
  EXPECT_NEAR(result.loss.item<double>(),
              (0.5 * result.balance_loss + 0.25 * result.z_loss + 2 * result.importance_loss)
                  .item<double>(),
              1e-6);
  result.loss.backward();
  EXPECT_GT(layer.router().parameters()[0].grad().abs().max().item<double>(), 0);
}

TEST(Capacity, IsTheCeilingOfTheEvenShare) {
  EXPECT_EQ(expert_capacity(10, 2, 4, 1.0), 5);
  EXPECT_EQ(expert_capacity(10, 2, 3, 1.0), 7);
  EXPECT_EQ(expert_capacity(10, 2, 4, 1.25), 7);
  EXPECT_EQ(expert_capacity(10, 2, 4, 0.0), 10);
  EXPECT_EQ(expert_capacity(10, 2, 4, 100.0), 10);
  EXPECT_EQ(expert_capacity(0, 2, 4, 1.0), 0);
  EXPECT_THROW(expert_capacity(10, 2, 4, -1.0), InvalidArgument);
}

TEST(TokenLayout, DropsByPositionOrByProbability) {
  //                 pair:  0  1  2  3  4
  const Pairs pairs = {{0, 0, 1, 2, 2}, {1, 0, 0, 0, 1}, {0, 1, 0, 0, 1}};
  const at::Tensor weight = at::tensor({0.6, 0.4, 0.3, 0.9, 0.1});
  // Expert 0 is chosen by pairs 1 (second choice), 2 and 3.
  const auto position = make_token_layout(pairs, weight, 3, 2, 2, DropPolicy::kPosition);
  EXPECT_EQ(position.pair, (std::vector<std::int32_t>{2, 3, 0, 4}));
  EXPECT_EQ(position.token, (std::vector<std::int32_t>{1, 2, 0, 2}));
  EXPECT_EQ(position.expert_begin, (std::vector<std::int64_t>{0, 2, 4}));
  EXPECT_EQ(position.dropped, 1);
  const auto probability = make_token_layout(pairs, weight, 3, 2, 2, DropPolicy::kProbability);
  EXPECT_EQ(probability.pair, (std::vector<std::int32_t>{1, 3, 0, 4}));
  EXPECT_THROW(make_token_layout(pairs, weight, 2, 2, 2, DropPolicy::kPosition), InvalidArgument);
  EXPECT_THROW(make_token_layout(pairs, weight, 3, 1, 2, DropPolicy::kPosition), InvalidArgument);
}

TEST(ExpertPlacement, CoversAllExpertsOnce) {
  for (const std::int64_t experts : {1, 3, 7, 8}) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      const ExpertPlacement placement(experts, ranks);
      EXPECT_EQ(placement.first(0), 0);
      EXPECT_EQ(placement.first(ranks), experts);
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_GE(placement.count(rank), experts / ranks);
        EXPECT_LE(placement.count(rank), experts / ranks + 1);
      }
    }
  }
}

TEST(RowOps, EqualDenseMatrixProductsInAllTypes) {
  const auto map = c10::make_intrusive<RowMap>(std::vector<std::int32_t>{2, 0, 2, 1, 2},
                                               std::vector<std::int32_t>{0, 1, 1, 3, 3}, 3, 5);
  const at::Tensor weight = at::tensor({0.5, 2.0, -1.0, 3.0, 0.25}, at::kDouble);
  at::Tensor matrix = at::zeros({5, 3}, at::kDouble);
  for (std::size_t i = 0; i < 5; ++i) matrix[map->to[i]][map->from[i]] += weight[i];
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor rows = at::randn({3, 17}).to(type).requires_grad_();
    const at::Tensor w = weight.clone().requires_grad_();
    const at::Tensor result = map_rows(rows, w, map);
    EXPECT_EQ(result.scalar_type(), type);
    const at::Tensor exact_rows = rows.detach().to(at::kDouble);
    const double tolerance = type == at::kDouble ? 1e-12 : type == at::kFloat ? 1e-5 : 5e-2;
    EXPECT_TRUE(
        at::allclose(result.to(at::kDouble), at::matmul(matrix, exact_rows), tolerance, tolerance));
    const at::Tensor gradient = at::randn({5, 17}).to(type);
    result.backward(gradient);
    const at::Tensor g = gradient.to(at::kDouble);
    EXPECT_TRUE(
        at::allclose(rows.grad().to(at::kDouble), at::matmul(matrix.t(), g), tolerance, tolerance));
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_NEAR(w.grad()[static_cast<std::int64_t>(i)].item<double>(),
                  (g[map->to[i]] * exact_rows[map->from[i]]).sum().item<double>(), 1e-9);
    }
  }
}

}  // namespace
}  // namespace thinwire::moe
