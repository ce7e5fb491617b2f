// Gradient penalties: derivatives of the layer's gradients against those of a loop over experts.

#include <gtest/gtest.h>

#include <mutex>

#include <torch/csrc/autograd/autograd.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/moe/layer/moe_reference.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::moe {
namespace {

using testing::ReferenceExperts;
using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 6;
constexpr std::int64_t kExperts = 5;

MoEOptions penalty_options(bool share, int chunks, ExpertGradient kind) {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = kExperts, .top_k = 2};
  options.hidden = 4;
  options.balance_factor = 0;
  options.share_rows = share;
  options.chunks = chunks;
  options.expert_gradient = kind;
  options.seed = 11;
  return options;
}

at::Tensor tokens_of(int rank, std::int64_t count = 7) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(300 + rank));
  return at::randn({count, kDim}, generator, at::kDouble);
}

// A loss and the square of its gradient with respect to x, in which every element counts
// differently.
at::Tensor with_penalty(const at::Tensor& output, const at::Tensor& x) {
  const auto factor = [](const at::Tensor& like) {
    return at::arange(1, like.numel() + 1, at::kDouble).reshape(like.sizes()) * 0.1;
  };
  const at::Tensor loss = (output.square() * factor(output)).sum();
  const at::Tensor gradient = torch::autograd::grad({loss}, {x}, {}, std::nullopt, true)[0];
  return loss + (gradient.square() * factor(gradient)).sum();
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  const double scale = std::max(1.0, expected.abs().max().item<double>());
  EXPECT_LE((actual - expected).abs().max().item<double>(), 1e-9 * scale) << what;
}

using Setting = std::tuple<int, bool, int, ExpertGradient>;
class GradientPenalty : public ::testing::TestWithParam<Setting> {};

TEST_P(GradientPenalty, EqualsALoopOverExperts) {
  const auto [ranks, share, chunks, kind] = GetParam();
  const MoEOptions options = penalty_options(share, chunks, kind);
  MoELayer whole(options, {});
  whole.to(at::kDouble);
  const NamedTensors state = whole.full_state();
  const ReferenceExperts experts(state, kExperts);
  const at::Tensor gate = state.at("router.weight").clone().requires_grad_();
  std::vector<at::Tensor> inputs;
  at::Tensor loss = at::zeros({}, at::kDouble);
  for (int rank = 0; rank < ranks; ++rank) {
    inputs.push_back(tokens_of(rank).requires_grad_());
    loss = loss + with_penalty(testing::reference_layer(inputs.back(), gate, experts, 2, 7),
                               inputs.back());
  }
  loss.backward();
  const double scale = kind == ExpertGradient::kMean ? ranks : 1;

  std::mutex mutex;
  at::Tensor gate_gradient = at::zeros_like(gate);
  run_ranks(ranks, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    layer.to(at::kDouble);
    const auto rank = static_cast<std::size_t>(context.rank);
    const at::Tensor x = inputs[rank].detach().clone().requires_grad_();
    with_penalty(layer.forward(x).output, x).backward();
    const std::lock_guard lock(mutex);
    expect_close(x.grad(), inputs[rank].grad(), concat("input of rank ", rank));
    gate_gradient += layer.router().parameters()[0].grad();
    for (const auto& item : layer.experts().named_parameters()) {
      for (std::int64_t i = 0; i < layer.experts().count(); ++i) {
        const std::int64_t e = layer.experts().first_expert() + i;
        const auto& one = experts.experts[static_cast<std::size_t>(e)];
        const at::Tensor& expected = item.key() == "w1"   ? one.w1
                                     : item.key() == "b1" ? one.b1
                                     : item.key() == "w2" ? one.w2
                                                          : one.b2;
        if (!expected.grad().defined()) continue;
        expect_close(item.value().grad()[i] * scale, expected.grad(),
                     concat(item.key(), " of expert ", e));
      }
    }
  });
  expect_close(gate_gradient, gate.grad(), "gate, summed over the ranks");
}

// The square of the gradients of the experts' own parameters, each element of which counts
// differently. With kMean the function is divided by the number of ranks, see moe_layer.h.
TEST(SecondDerivatives, OfTheExpertsOwnGradients) {
  constexpr int kRanks = 3;
  const auto square = [](const std::vector<at::Tensor>& gradients) {
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (const at::Tensor& gradient : gradients) {
      const at::Tensor of_expert = gradient.flatten();
      sum = sum +
            (of_expert.square() * (at::arange(1, of_expert.numel() + 1, at::kDouble) * 0.1)).sum();
    }
    return sum;
  };
  for (const ExpertGradient kind : {ExpertGradient::kMean, ExpertGradient::kSum}) {
    const double scale = kind == ExpertGradient::kMean ? kRanks : 1;
    const MoEOptions options = penalty_options(true, 1, kind);
    MoELayer whole(options, {});
    whole.to(at::kDouble);
    const NamedTensors state = whole.full_state();
    const ReferenceExperts experts(state, kExperts);
    const at::Tensor gate = state.at("router.weight").clone().requires_grad_();
    std::vector<at::Tensor> inputs, weights;
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (int rank = 0; rank < kRanks; ++rank) {
      inputs.push_back(tokens_of(rank).requires_grad_());
      loss = loss + testing::reference_layer(inputs.back(), gate, experts, 2, 7).square().sum();
    }
    for (const auto& one : experts.experts) weights.push_back(one.w1);
    std::vector<at::Tensor> gradients =
        torch::autograd::grad({loss}, weights, {}, std::nullopt, true);
    for (at::Tensor& gradient : gradients) gradient = gradient / scale;
    (loss + square(gradients)).backward();

    run_ranks(kRanks, [&](RankContext& context) {
      MoELayer layer(options, context.group);
      layer.to(at::kDouble);
      const auto rank = static_cast<std::size_t>(context.rank);
      const at::Tensor x = inputs[rank].detach().clone().requires_grad_();
      const at::Tensor mine = layer.forward(x).output.square().sum();
      at::Tensor w1;
      for (const auto& item : layer.experts().named_parameters())
        if (item.key() == "w1") w1 = item.value();
      const auto own = torch::autograd::grad({mine}, {w1}, {}, std::nullopt, true)[0].unbind(0);
      (mine + square(own) / scale).backward();
      expect_close(x.grad(), inputs[rank].grad(), concat("input of rank ", rank));
      for (std::int64_t i = 0; i < layer.experts().count(); ++i) {
        const std::int64_t e = layer.experts().first_expert() + i;
        expect_close(w1.grad()[i] * scale, experts.experts[static_cast<std::size_t>(e)].w1.grad(),
                     concat("w1 of expert ", e));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GradientPenalty,
                         ::testing::Values(Setting{1, true, 1, ExpertGradient::kMean},
                                           Setting{2, true, 1, ExpertGradient::kMean},
                                           Setting{2, false, 1, ExpertGradient::kSum},
                                           Setting{3, true, 3, ExpertGradient::kMean},
                                           Setting{5, true, 2, ExpertGradient::kMean}));

// Merging is a mean with clusters held fixed, which has derivatives of any order: the penalty's
// gradient against differences of the penalty along a direction that leaves the clusters alone.
TEST(GradientPenalty, OfMergedRows) {
  MoEOptions options = penalty_options(true, 1, ExpertGradient::kMean);
  options.dedup = parse_dedup("lsh(hashes=2, radius=1)");
  MoELayer layer(options, {});
  layer.to(at::kDouble);
  const at::Tensor base = tokens_of(0, 24);
  const auto penalty_at = [&](const at::Tensor& w1) {
    {
      const at::NoGradGuard no_grad;
      layer.expert_parameters()[0].copy_(w1);
    }
    const at::Tensor x = base.clone().requires_grad_();
    const MoEOutput result = layer.forward(x);
    EXPECT_LT(result.counters.dedup.rows_sent, result.counters.rows);
    return with_penalty(result.output, x);
  };
  const at::Tensor w1 = layer.expert_parameters()[0].detach().clone();
  penalty_at(w1).backward();
  const at::Tensor gradient = layer.expert_parameters()[0].grad().clone();
  const at::Tensor direction = tokens_of(9, w1.numel() / kDim).reshape(w1.sizes());
  constexpr double kStep = 1e-5;
  const double difference =
      (penalty_at(w1 + direction * kStep) - penalty_at(w1 - direction * kStep)).item<double>() /
      (2 * kStep);
  EXPECT_NEAR((gradient * direction).sum().item<double>(), difference, 1e-6 * std::abs(difference));
}

TEST(GradientPenalty, ThroughACodecIsAnErrorOnEveryRank) {
  for (const int ranks : {1, 2}) {
    MoEOptions options = penalty_options(true, 1, ExpertGradient::kMean);
    options.rows.combine = "cast(bf16)";
    const auto errors =
        thinwire::testing::errors_of<InvalidArgument>(ranks, [&](RankContext& context) {
          MoELayer layer(options, context.group);
          layer.to(at::kDouble);
          const at::Tensor x = tokens_of(context.rank).requires_grad_();
          with_penalty(layer.forward(x).output, x).backward();
        });
    ASSERT_EQ(errors.size(), static_cast<std::size_t>(ranks));
    for (const std::string& error : errors) {
      EXPECT_NE(error.find("cannot be derived again (combine=cast(format=bf16))"),
                std::string::npos)
          << error;
    }
  }
}

// A graph that nobody derives again costs nothing and is no error.
TEST(GradientPenalty, CreateGraphAloneWorksWithCodecs) {
  MoEOptions options = penalty_options(true, 1, ExpertGradient::kMean);
  options.rows = parse_rows("quantize(bits=8)");
  MoELayer layer(options, {});
  const auto gradient_of = [&](bool create_graph) {
    const at::Tensor x = tokens_of(0).to(at::kFloat).requires_grad_();
    const at::Tensor loss = layer.forward(x).output.square().sum();
    return torch::autograd::grad({loss}, {x}, {}, std::nullopt, create_graph)[0].detach();
  };
  EXPECT_TRUE(at::equal(gradient_of(true), gradient_of(false)));
}

}  // namespace
}  // namespace thinwire::moe
