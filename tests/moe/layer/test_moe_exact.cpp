// The layer without compression against a loop over tokens and experts: outputs and all gradients,
// on 1 to 4 ranks, with uneven experts, several k, with and without capacity.

#include <gtest/gtest.h>

#include <mutex>

#include "thinwire/tests/moe/layer/moe_reference.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::moe {
namespace {

using testing::ReferenceExperts;
using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;

struct Case {
  int ranks;
  std::int64_t experts, top_k;
  double capacity_factor;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.ranks << " ranks, " << c.experts << " experts, k=" << c.top_k << ", capacity "
             << c.capacity_factor;
}

MoEOptions options_for(const Case& c) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = c.experts, .top_k = c.top_k};
  options.hidden = 5;
  options.capacity_factor = c.capacity_factor;
  options.balance_factor = 0;
  options.seed = 3;
  return options;
}

// Tokens of one rank; with `spread`, the last ranks have fewer, the last of several none.
at::Tensor tokens_of(int rank, int ranks, std::int64_t most) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 + rank));
  const std::int64_t count = ranks > 1 && rank == ranks - 1 ? 0 : most - 2 * rank;
  return at::randn({count, kDim}, generator, at::kDouble);
}

// Any smooth loss in which every output element counts differently.
at::Tensor loss_of(const at::Tensor& output) {
  const at::Tensor factor =
      at::arange(1, output.numel() + 1, at::kDouble).reshape(output.sizes()) * 0.1;
  return (output * factor + output.square()).sum();
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (expected.numel() == 0) return;
  const double scale = std::max(1.0, expected.abs().max().item<double>());
  EXPECT_LE((actual - expected).abs().max().item<double>(), 1e-10 * scale) << what;
}

class ExactLayer : public ::testing::TestWithParam<Case> {};

TEST_P(ExactLayer, EqualsALoopOverExperts) {
  const Case c = GetParam();
  constexpr std::int64_t kTokens = 11;
  const MoEOptions options = options_for(c);

  MoELayer whole(options, {});
  whole.to(at::kDouble);
  const NamedTensors state = whole.full_state();
  const ReferenceExperts experts(state, c.experts);
  const at::Tensor gate = state.at("router.weight").clone().requires_grad_();
  std::vector<at::Tensor> inputs, outputs;
  at::Tensor loss = at::zeros({}, at::kDouble);
  for (int rank = 0; rank < c.ranks; ++rank) {
    inputs.push_back(tokens_of(rank, c.ranks, kTokens).requires_grad_());
    const std::int64_t capacity =
        expert_capacity(inputs.back().size(0), c.top_k, c.experts, c.capacity_factor);
    outputs.push_back(testing::reference_layer(inputs.back(), gate, experts, c.top_k, capacity));
    loss = loss + loss_of(outputs.back());
  }
  loss.backward();

  std::mutex mutex;
  at::Tensor gate_gradient = at::zeros_like(gate);
  std::int64_t experts_seen = 0;
  run_ranks(c.ranks, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    layer.to(at::kDouble);
    const auto rank = static_cast<std::size_t>(context.rank);
    const at::Tensor x = inputs[rank].detach().clone().requires_grad_();
    const MoEOutput result = layer.forward(x);
    loss_of(result.output).backward();

    const std::lock_guard lock(mutex);
    EXPECT_EQ(result.counters.pairs, x.size(0) * c.top_k);
    EXPECT_EQ(result.counters.rows + result.counters.dropped, result.counters.pairs);
    expect_close(result.output, outputs[rank], concat("output of rank ", rank));
    expect_close(x.grad(), inputs[rank].grad().defined() ? inputs[rank].grad() : at::zeros_like(x),
                 concat("input gradient of rank ", rank));
    gate_gradient += layer.router().parameters()[0].grad();
    // The default scale: the sum over the ranks divided by their number.
    for (const auto& item : layer.experts().named_parameters()) {
      for (std::int64_t i = 0; i < layer.experts().count(); ++i) {
        const std::int64_t e = layer.experts().first_expert() + i;
        const auto& one = experts.experts[static_cast<std::size_t>(e)];
        const at::Tensor& expected = item.key() == "w1"   ? one.w1
                                     : item.key() == "b1" ? one.b1
                                     : item.key() == "w2" ? one.w2
                                                          : one.b2;
        expect_close(item.value().grad()[i] * c.ranks,
                     expected.grad().defined() ? expected.grad() : at::zeros_like(expected),
                     concat("gradient of ", item.key(), " of expert ", e));
      }
    }
    experts_seen += layer.experts().count();
  });
  expect_close(gate_gradient, gate.grad(), "gate gradient summed over the ranks");
  EXPECT_EQ(experts_seen, c.experts);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int ranks : {1, 2, 3, 4}) {
    for (const std::int64_t k : {1, 2, 4}) {
      for (const double capacity : {0.0, 0.8}) all.push_back({ranks, 7, k, capacity});
    }
  }
  all.push_back({4, 3, 2, 0.0});   // a rank without experts
  all.push_back({3, 60, 2, 0.0});  // more experts than fit one plan record
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cases, ExactLayer, ::testing::ValuesIn(cases()));

// The gradients of the experts as a function of the number of ranks, for equal tokens and a loss
// that is the mean over all tokens.
TEST(ExpertGradients, DoNotDependOnTheNumberOfRanks) {
  const Case c{1, 5, 2, 0.0};
  auto generator = at::detail::createCPUGenerator(9);
  const at::Tensor tokens = at::randn({12, kDim}, generator, at::kDouble);
  std::map<std::string, at::Tensor> expected;
  for (const int ranks : {1, 2, 3, 4}) {
    for (const auto kind : {ExpertGradient::kMean, ExpertGradient::kSum}) {
      MoEOptions options = options_for(c);
      options.expert_gradient = kind;
      std::mutex mutex;
      run_ranks(ranks, [&](RankContext& context) {
        MoELayer layer(options, context.group);
        layer.to(at::kDouble);
        const std::int64_t count = 12 / ranks;
        const at::Tensor mine = tokens.narrow(0, context.rank * count, count);
        const at::Tensor output = layer.forward(mine).output.square();
        (kind == ExpertGradient::kMean ? output.mean() : output.sum() / (12 * kDim)).backward();
        const std::lock_guard lock(mutex);
        for (std::int64_t i = 0; i < layer.experts().count(); ++i) {
          for (const auto& item : layer.experts().named_parameters()) {
            const std::string name =
                concat(item.key(), " of expert ", layer.experts().first_expert() + i);
            const at::Tensor gradient = item.value().grad()[i].clone();
            const auto known = expected.try_emplace(name, gradient).first->second;
            expect_close(gradient, known, concat(name, " on ", ranks, " ranks"));
          }
        }
      });
    }
  }
  EXPECT_EQ(expected.size(), 20u);
}

TEST(Layer, FrozenInputsOnSomeRanksDoNotStopTheOthers) {
  // Rank 1's tokens need no gradient, so only its parameters keep its part of the graph alive.
  const MoEOptions options = options_for({2, 3, 2, 0.0});
  run_ranks(2, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    layer.to(at::kDouble);
    for (auto& parameter : layer.router().parameters()) parameter.requires_grad_(false);
    at::Tensor x = tokens_of(0, 1, 5);
    if (context.rank == 0) x.requires_grad_();
    loss_of(layer.forward(x).output).backward();
    EXPECT_EQ(x.grad().defined(), context.rank == 0);
    for (const auto& parameter : layer.expert_parameters()) {
      EXPECT_TRUE(parameter.grad().defined());
    }
  });
}

TEST(Layer, EvaluationWithoutGradients) {
  const MoEOptions options = options_for({2, 4, 2, 0.0});
  run_ranks(2, [&](RankContext& context) {
    const at::NoGradGuard no_grad;
    MoELayer layer(options, context.group);
    const at::Tensor x = tokens_of(context.rank, 3, 6).to(at::kFloat).reshape({-1, 2, kDim});
    const at::Tensor output = layer.forward(x).output;
    EXPECT_EQ(output.sizes(), x.sizes());
    EXPECT_FALSE(output.requires_grad());
    EXPECT_EQ(layer.wire_bytes().rows[static_cast<int>(Leg::kCombineBackward)], 0);
  });
}

}  // namespace
}  // namespace thinwire::moe
