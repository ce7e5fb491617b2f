#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <mutex>

#include "outer_toy.h"
#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/common/temporary_file.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using testing::errors_of;
using testing::expect_same_on_all;
using ::testing::HasSubstr;
using testing::kRate;
using testing::RankContext;
using testing::run_ranks;
using testing::Toy;
using testing::train;

// The definition, for all ranks in one process, in float64.
at::Tensor reference(int world, const OuterOptimizerOptions& options, int steps) {
  Toy start;
  at::Tensor s = start.flat().to(at::kDouble), m = at::zeros_like(s);
  std::vector<at::Tensor> x;
  for (int rank = 0; rank < world; ++rank) x.push_back(s.clone());
  for (int step = 0; step < steps; ++step) {
    for (int rank = 0; rank < world; ++rank) {
      Toy gradients;
      gradients.set_gradients(rank, step);
      x[static_cast<std::size_t>(rank)].sub_(
          at::cat({gradients.big.grad().flatten(), gradients.small.grad().flatten(),
                   gradients.bias.grad().flatten()}),
          kRate);
    }
    if ((step + 1) % options.inner_steps != 0) continue;
    at::Tensor d = at::zeros_like(s);
    for (const at::Tensor& replica : x) d.add_(s - replica, 1.0 / world);
    const double momentum = options.momentum.value();
    m = momentum * m + d;
    s = s -
        options.learning_rate.value() * (options.nesterov.value_or(true) ? d + momentum * m : m);
    for (at::Tensor& replica : x) replica = s.clone();
  }
  return x[0];
}

TEST(OuterOptimizer, DenseEqualsASingleProcess) {
  for (const bool nesterov : {true, false}) {
    const OuterOptimizerOptions options{.inner_steps = 3,
                                        .learning_rate = 0.7,
                                        .momentum = 0.9,
                                        .nesterov = nesterov,
                                        .compression = "none"};
    const at::Tensor expected = reference(3, options, 12);
    run_ranks(3, [&](RankContext& ctx) {
      Toy toy;
      train(ctx, toy, options, 12);
      EXPECT_LT((toy.flat() - expected).abs().max().item<double>(), 2e-6);
      expect_same_on_all(ctx, toy.flat());
    });
  }
}

TEST(OuterOptimizer, TheOuterStepFollowsFromWhatCompressionKeeps) {
  run_ranks(2, [](RankContext& ctx) {
    struct Case {
      OuterOptimizerOptions options;
      double learning_rate, momentum;
      bool nesterov;
      const char* decay;
    };
    const Case cases[] = {
        {{.compression = "none"}, 0.7, 0.9, true, ""},
        {{.compression = "cast(bf16)"}, 0.7, 0.9, true, ""},
        {{.compression = "ternary(density=0.05, error_feedback=off)"}, 0.7, 0.9, true, ""},
        {{}, 1, 0.5, true, "residual_decay=0.95"},
        {{.compression = "quantize(bits=4)"}, 1, 0.5, true, "residual_decay=0.95"},
        {{.momentum = 0.0, .compression = "ecsq(bits=1, residual_decay=0.5)"},
         1,
         0,
         true,
         "residual_decay=0.5"},
        {{.learning_rate = 0.3, .nesterov = false}, 0.3, 0.5, false, "residual_decay=0.95"},
    };
    for (Case each : cases) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), kRate);
      each.options.min_numel = 1;
      const OuterOptimizer optimizer(toy, inner, ctx.group, each.options);
      const std::string what = each.options.compression;
      EXPECT_EQ(optimizer.outer().learning_rate, each.learning_rate) << what;
      EXPECT_EQ(optimizer.outer().momentum, each.momentum) << what;
      EXPECT_EQ(optimizer.outer().nesterov, each.nesterov) << what;
      EXPECT_NE(optimizer.plan().text().find(each.decay), std::string::npos) << what;
    }
  });
}

TEST(OuterOptimizer, OneInnerStepWithoutMomentumIsPlainAveraging) {
  run_ranks(2, [](RankContext& ctx) {
    Toy toy;
    train(ctx, toy, {.inner_steps = 1, .learning_rate = 1, .momentum = 0, .compression = "none"},
          4);
    Toy mean;
    for (int step = 0; step < 4; ++step) {
      at::NoGradGuard no_grad;
      Toy first, second;
      first.set_gradients(0, step);
      second.set_gradients(1, step);
      mean.big.sub_(first.big.grad() + second.big.grad(), kRate / 2);
      mean.small.sub_(first.small.grad() + second.small.grad(), kRate / 2);
      mean.bias.sub_(first.bias.grad() + second.bias.grad(), kRate / 2);
    }
    EXPECT_LT((toy.flat() - mean.flat()).abs().max().item<double>(), 1e-6);
  });
}

TEST(OuterOptimizer, TernaryDeltasReachEveryoneAndResidualsHoldTheRest) {
  // With momentum 0 and rate 1, what was sent and what the residuals hold is all that was trained.
  const OuterOptimizerOptions options{.inner_steps = 2,
                                      .learning_rate = 1,
                                      .momentum = 0,
                                      .compression = "ternary(density=0.05, residual_decay=1)"};
  std::mutex mutex;
  std::vector<OuterState> states(2);
  at::Tensor reached;
  run_ranks(2, [&](RankContext& ctx) {
    Toy toy;
    const auto state = train(ctx, toy, options, 10);
    expect_same_on_all(ctx, toy.flat());
    const std::lock_guard lock(mutex);
    states[static_cast<std::size_t>(ctx.rank)] = state;
    reached = toy.flat();
  });
  const at::Tensor dense = reference(2, options, 10);
  const OuterState merged = merge_states(states, 1);
  // The bias is small and travels uncompressed.
  ASSERT_EQ(part_of(merged, "averager/residual/").size(), 2);
  at::Tensor carried = at::zeros_like(dense);
  carried.narrow(0, 0, 2400).copy_(merged.at("averager/residual/lora_A"));
  carried.narrow(0, 2400, 1500).copy_(merged.at("averager/residual/lora_B"));
  EXPECT_LT((reached - carried - dense).abs().max().item<double>(), 1e-5);
  EXPECT_GT(carried.abs().max().item<double>(), 0.1);
}

TEST(OuterOptimizer, GranularityDecidesWhoSharesAThreshold) {
  const auto moved = [](peft::Granularity granularity) {
    std::vector<std::int64_t> counts;
    run_ranks(2, [&](RankContext& ctx) {
      Toy toy, before;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(1));
      OuterOptimizer optimizer(toy, inner, ctx.group,
                               {.inner_steps = 1,
                                .compression = "ternary(density=0.1)",
                                .granularity = granularity,
                                .min_numel = 1});
      toy.set_gradients(0, 0);  // equal on both ranks, so that both keep the same entries
      toy.small.mutable_grad().mul_(0.001);
      optimizer.step();
      if (ctx.rank != 0) return;
      for (const auto& item : toy.named_parameters())
        counts.push_back(
            at::ne(item.value(), before.named_parameters()[item.key()]).sum().item<std::int64_t>());
    });
    return counts;
  };
  // lora_A has 2400 entries, lora_B 1500 (moved a thousandth as far), bias 50, frozen none.
  EXPECT_EQ(moved(peft::Granularity::kTensor), (std::vector<std::int64_t>{240, 150, 5, 0}));
  EXPECT_EQ(moved(peft::Granularity::kGroup), (std::vector<std::int64_t>{240, 150, 5, 0}));
  const auto global = moved(peft::Granularity::kGlobal);
  EXPECT_EQ(global[1], 0);
  EXPECT_EQ(global[0] + global[2], 395);
}

TEST(OuterOptimizer, SendsLessThanCastDeltas) {
  const auto bytes = [](const std::string& compression) {
    std::uint64_t sent = 0;
    run_ranks(4, [&](RankContext& ctx) {
      torch::nn::Linear net(700, 700);
      torch::optim::SGD inner(net->parameters(), torch::optim::SGDOptions(1));
      OuterOptimizer optimizer(*net, inner, ctx.group,
                               {.inner_steps = 1, .compression = compression});
      const auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(ctx.rank));
      for (at::Tensor& p : net->parameters()) p.mutable_grad() = at::randn(p.sizes(), generator);
      optimizer.step();
      const OuterSummary summary = optimizer.summary();
      EXPECT_EQ(summary.outer_steps, 1);
      if (ctx.rank == 0) sent = summary.traffic.sent_bytes;
    });
    return static_cast<double>(sent);
  };
  EXPECT_GT(bytes("cast(bf16)") / bytes("ternary(density=0.05)"), 20);
}

// Of each outer step after the first: the deltas as c10d's all_reduce sends them, three numbers of
// 8 bytes to every other rank, two more where the weights are compared, and rank 0's buffers.
TEST(OuterOptimizer, CountsAllThatItSends) {
  for (const bool compared : {true, false}) {
    run_ranks(3, [&](RankContext& ctx) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(
          toy, inner, ctx.group,
          {.inner_steps = 1, .compression = "none", .check_replicas = compared});
      std::uint64_t before = 0;
      for (std::int64_t step = 0; step < 4; ++step) {
        toy.set_gradients(ctx.rank, step);
        optimizer.step();
        const std::uint64_t sent = optimizer.summary().traffic.sent_bytes;
        const std::uint64_t deltas = 4 * (60 * 40 + 50 * 30 + 50) * 2 * 2 / 3;
        if (step > 1) {
          EXPECT_EQ(sent - before, deltas + 2 * (24 + (compared ? 16 : 0)) +
                                       (ctx.rank == 0 ? toy.counts.nbytes() : 0));
        }
        before = sent;
      }
    });
  }
}

TEST(OuterOptimizer, NarrowWeightsFollowTheirFloat32Copy) {
  run_ranks(2, [](RankContext& ctx) {
    Toy toy(at::kBFloat16);
    const auto state = train(ctx, toy, {.inner_steps = 2, .compression = "none"}, 8);
    const at::Tensor rounded = state.at("synchronised").to(at::kBFloat16).to(at::kFloat);
    EXPECT_TRUE(at::equal(toy.flat(), rounded));
    expect_same_on_all(ctx, toy.flat());
  });
  // Without training nothing moves, though float32 and bfloat16 differ.
  run_ranks(2, [](RankContext& ctx) {
    Toy toy(at::kBFloat16);
    const auto state = train(ctx, toy, {.inner_steps = 2, .compression = "none"}, 2);
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.momentum = 0, .compression = "none"});
    optimizer.load_state(state);
    optimizer.outer_step();
    EXPECT_TRUE(at::equal(optimizer.state().at("synchronised"), state.at("synchronised")));
  });
}

TEST(OuterOptimizer, WarnsOfScalesThatDivergeUnderFeedback) {
  run_ranks(2, [](RankContext& ctx) {
    const auto warnings = [&](const std::string& compression) {
      Toy toy;
      torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
      return OuterOptimizer(toy, inner, ctx.group, {.compression = compression}).warnings();
    };
    EXPECT_THAT(warnings("ternary(density=0.2)"), ::testing::IsEmpty());
    EXPECT_THAT(warnings("ternary(density=0.05, scale=std, alpha=2)"), ::testing::IsEmpty());
    EXPECT_THAT(warnings("ternary(density=0.05, scale=std, alpha=4)"),
                AllOf(::testing::SizeIs(2), Each(HasSubstr("residual never settles"))));
    EXPECT_THAT(warnings("ternary(density=0.2, scale=std, alpha=3.6)"),
                Each(AllOf(HasSubstr("lora_"), HasSubstr("larger than the delta"))));
    // Without residuals nothing is added up.
    EXPECT_THAT(warnings("ternary(density=0.2, scale=std, alpha=5, error_feedback=off)"),
                ::testing::IsEmpty());
  });
}

TEST(OuterOptimizer, ALargeAlphaDivergesWhereTheMeanSettles) {
  const auto residual_after = [](const std::string& compression, int steps) {
    double norm = 0;
    run_ranks(2, [&](RankContext& ctx) {
      Toy toy;
      const auto state = train(ctx, toy, {.inner_steps = 1, .compression = compression}, steps);
      if (ctx.rank == 0) norm = state.at("averager/residual/lora_A").norm().item<double>();
    });
    return norm;
  };
  EXPECT_LT(residual_after("ternary(density=0.2)", 40),
            2 * residual_after("ternary(density=0.2)", 20));
  EXPECT_GT(residual_after("ternary(density=0.2, scale=std, alpha=5)", 40),
            10 * residual_after("ternary(density=0.2, scale=std, alpha=5)", 20));
}

// Whatever the codec carries: residuals, what owners of slices owe, warm starts, velocities.
class SavedState : public ::testing::TestWithParam<const char*> {};

TEST_P(SavedState, GoesOnWithTheSameBits) {
  const OuterOptimizerOptions options{
      .inner_steps = 3, .compression = GetParam(), .granularity = peft::Granularity::kTensor};
  const TemporaryFile files[2] = {TemporaryFile("outer0"), TemporaryFile("outer1")};
  at::Tensor straight, resumed;
  run_ranks(2, [&](RankContext& ctx) {
    Toy toy;
    train(ctx, toy, options, 18);
    if (ctx.rank == 0) straight = toy.flat();
  });
  run_ranks(2, [&](RankContext& ctx) {
    const auto& file = files[ctx.rank].path();
    Toy first, second;
    {
      torch::optim::SGD inner(first.parameters(), torch::optim::SGDOptions(kRate));
      OuterOptimizer optimizer(first, inner, ctx.group, options);
      for (int step = 0; step < 10; ++step) {  // not at a meeting
        first.set_gradients(ctx.rank, step);
        optimizer.step();
      }
      save_tensors(optimizer.state(), file);
    }
    torch::optim::SGD inner(second.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(second, inner, ctx.group, options);
    optimizer.load_state(load_tensors(file));
    {
      at::NoGradGuard no_grad;
      for (auto& item : second.named_parameters())
        item.value().copy_(first.named_parameters()[item.key()]);
    }
    for (int step = 10; step < 18; ++step) {
      second.set_gradients(ctx.rank, step);
      optimizer.step();
    }
    EXPECT_EQ(optimizer.summary().outer_steps, 6);
    if (ctx.rank == 0) resumed = second.flat();
  });
  EXPECT_TRUE(at::equal(straight, resumed));
}

INSTANTIATE_TEST_SUITE_P(OuterOptimizer, SavedState,
                         ::testing::Values("ternary(density=0.05)", "quantize(bits=4)",
                                           "powersgd(rank=2)", "topk(density=0.05, momentum=0.9)"));

TEST(OuterOptimizer, StatesOfOtherJobsAreRefused) {
  OuterState state;
  run_ranks(1, [&](RankContext& ctx) {
    Toy toy;
    state = train(ctx, toy, {.inner_steps = 1}, 2);
  });
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1});
    optimizer.load_state(merge_states({state}, 2));  // fits
    optimizer.load_state(state);
  });
  EXPECT_THAT(errors, Each(HasSubstr("one of 1 ranks, this job has 2")));
  run_ranks(1, [&](RankContext& ctx) {
    torch::nn::Linear other(3, 3);
    torch::optim::SGD inner(other->parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(*other, inner, ctx.group);
    EXPECT_THROW(optimizer.load_state(state), InvalidArgument);
  });
  EXPECT_THROW(merge_states({state, state}, 2), InvalidArgument);
}

TEST(OuterOptimizer, FollowsWhatIsLoadedIntoTheModuleInPlace) {
  run_ranks(2, [](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1, .compression = "none"});
    // As torch::load() does: another storage for the module's own tensors.
    const at::Tensor loaded = at::full({3}, 10.0f + static_cast<float>(ctx.rank));
    {
      at::NoGradGuard no_grad;
      toy.counts.set_(loaded);
    }
    toy.set_gradients(ctx.rank, 0);
    optimizer.step();
    EXPECT_EQ(toy.counts.max().item<float>(), 10);
  });
}

TEST(OuterOptimizer, ATensorOfTwoNamesIsOneAndARanksOwnIsLeftAlone) {
  struct Shared : torch::nn::Module {
    Shared() {
      first = register_module("first", torch::nn::Linear(4, 4));
      register_module("second", first.ptr());
      expert = register_parameter("expert", at::zeros({3}));
      comm::mark_rank_local(expert);
    }
    torch::nn::Linear first{nullptr};
    at::Tensor expert;
  };
  run_ranks(2, [](RankContext& ctx) {
    Shared module;
    {
      at::NoGradGuard no_grad;
      module.expert.fill_(ctx.rank);
    }
    torch::optim::SGD inner({module.first->weight, module.first->bias},
                            torch::optim::SGDOptions(1));
    OuterOptimizer optimizer(
        module, inner, ctx.group,
        {.inner_steps = 1, .learning_rate = 1, .momentum = 0, .compression = "none"});
    EXPECT_EQ(module.expert.max().item<float>(), ctx.rank);
    EXPECT_EQ(text_of(optimizer.state(), "layout"),
              "parameter first.weight [4, 4] Float in first.weight\n"
              "parameter first.bias [4] Float in first.bias\n");
    const at::Tensor before = module.first->weight.detach().clone();
    module.first->weight.mutable_grad() = at::full({4, 4}, 1.0f + static_cast<float>(ctx.rank));
    module.first->bias.mutable_grad() = at::zeros({4});
    optimizer.step();
    EXPECT_TRUE(at::allclose(module.first->weight, before - 1.5));
    EXPECT_EQ(module.expert.max().item<float>(), ctx.rank);
  });
}

TEST(OuterOptimizer, StartsFromTheLeaderAndSharesItsBuffers) {
  run_ranks(2, [](RankContext& ctx) {
    Toy toy;
    {
      at::NoGradGuard no_grad;
      toy.big.add_(ctx.rank);
      toy.frozen.add_(ctx.rank);
    }
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(kRate));
    OuterOptimizer optimizer(toy, inner, ctx.group, {.inner_steps = 1});
    EXPECT_TRUE(at::equal(toy.big, Toy().big));
    EXPECT_TRUE(at::equal(toy.frozen, Toy().frozen));
    toy.counts.fill_(5 + ctx.rank);
    toy.set_gradients(ctx.rank, 0);
    optimizer.step();
    EXPECT_EQ(toy.counts.min().item<float>(), 5);
  });
}

}  // namespace
}  // namespace thinwire
