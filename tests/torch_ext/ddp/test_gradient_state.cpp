// Checkpoints of DistributedDataParallel: training that stops and goes on gives the bits of
// training that did not stop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/optim/sgd.h>

#include <mutex>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::errors_of;
using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;

struct Net : torch::nn::Module {
  Net() {
    auto generator = at::detail::createCPUGenerator(1);
    const auto add = [&](const char* name, at::IntArrayRef shape) {
      return register_parameter(name,
                                (at::randn(shape, generator, at::kDouble) * 0.1).to(at::kFloat));
    };
    first = add("first", {48, 32});
    bias = add("bias", {48});
    second = add("second", {24, 48});
  }
  at::Tensor forward(const at::Tensor& x) {
    return at::linear(at::relu(at::linear(x, first, bias)), second);
  }
  at::Tensor first, bias, second;
};

void copy_weights(const Net& from, Net& to) {
  const at::NoGradGuard no_grad;
  for (const auto& item : from.named_parameters())
    to.named_parameters()[item.key()].copy_(item.value());
}

using Ddp = DistributedDataParallel<std::shared_ptr<Net>>;

// A net with its optimiser, without momentum so that the parameters are all there is to save; and
// with buckets that stay as they are, which LibTorch's Reducer else orders anew after a first step.
struct Training {
  Training(RankContext& ctx, const CompressionOptions& compression)
      : rank(ctx.rank),
        net(std::make_shared<Net>()),
        ddp(net, ctx.group,
            {.compression = compression, .bucket_cap_mb = 0.004, .find_unused_parameters = true}),
        optimizer(net->parameters(), 0.05) {}

  void run(int begin, int end) {
    for (int step = begin; step < end; ++step) {
      auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(9 * step + rank));
      const auto x = at::randn({16, 32}, generator, at::kFloat);
      ddp.zero_grad();
      (ddp.forward(x) - x.narrow(1, 0, 4).sum(1, true)).pow(2).mean().backward();
      optimizer.step();
    }
  }
  void take_weights(const Net& other) { copy_weights(other, *net); }

  int rank;
  std::shared_ptr<Net> net;
  Ddp ddp;
  torch::optim::SGD optimizer;
};

class GradientStateOf : public ::testing::TestWithParam<const char*> {};

// What is as large as the model is not copied: a checkpoint does that.
TEST(GradientState, InPlaceItLiesWhereItIs) {
  run_ranks(2, [](RankContext& ctx) {
    for (const char* spec : {"topk(density=0.05)", "topk(density=0.05,momentum=0.9)"}) {
      Training training(ctx, CompressionOptions(spec));
      training.run(0, 3);
      const GradientState once = training.ddp.state_in_place();
      const GradientState again = training.ddp.state_in_place();
      const GradientState copy = training.ddp.state();
      int large = 0;
      for (const auto& [name, tensor] : once) {
        if (name.find("residual/") == std::string::npos && !name.starts_with("averager/velocity/"))
          continue;
        EXPECT_EQ(again.at(name).const_data_ptr(), tensor.const_data_ptr()) << name;
        EXPECT_NE(copy.at(name).const_data_ptr(), tensor.const_data_ptr()) << name;
        ++large;
      }
      EXPECT_GE(large, 2) << spec;
    }
  });
}

TEST_P(GradientStateOf, GoesOnWithTheSameBits) {
  run_ranks(3, [](RankContext& ctx) {
    CompressionOptions compression(GetParam());
    compression.warmup_steps = 2;
    compression.seed = 7;
    Training whole(ctx, compression), resumed(ctx, compression), forgetful(ctx, compression);
    whole.run(0, 6);
    const GradientState state = whole.ddp.state();
    EXPECT_EQ(state.at("steps").item<std::int64_t>(), 6);
    const GradientState in_place = whole.ddp.state_in_place();
    ASSERT_EQ(in_place.size(), state.size());
    for (const auto& [name, tensor] : state)
      EXPECT_TRUE(same_bits(in_place.at(name), tensor)) << name;
    resumed.take_weights(*whole.net);
    resumed.ddp.load_state(state);
    forgetful.take_weights(*whole.net);
    for (const int end : {7, 14}) {
      const int begin = end == 7 ? 6 : 7;
      whole.run(begin, end);
      resumed.run(begin, end);
      EXPECT_EQ(whole.ddp.parameters_crc32c(), resumed.ddp.parameters_crc32c()) << "step " << end;
    }
    EXPECT_EQ(whole.ddp.plan().text(), resumed.ddp.plan().text());
    const GradientState one = whole.ddp.state(), other = resumed.ddp.state();
    ASSERT_EQ(one.size(), other.size());
    for (const auto& [name, tensor] : one) EXPECT_TRUE(at::equal(tensor, other.at(name))) << name;
    // Without what compression owes it would be another training.
    GradientState steps_alone;
    for (const char* name : {"world", "steps"}) steps_alone.emplace(name, state.at(name));
    forgetful.ddp.load_state(steps_alone);
    forgetful.run(6, 14);
    const bool owes = state.size() > steps_alone.size();
    EXPECT_EQ(owes, std::string(GetParam()).find("stochastic") == std::string::npos);
    EXPECT_EQ(whole.ddp.parameters_crc32c() != forgetful.ddp.parameters_crc32c(), owes);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Codecs, GradientStateOf,
    ::testing::Values(
        "quantize(bits=2)", "quantize(bits=3, rounding=stochastic)", "topk(density=0.05)",
        "topk(density=0.05, momentum=0.9, ramp=8)", "onebit", "randomk(density=0.1)",
        "powersgd(rank=2)", "powersgd(rank=2, factors=ecsq(bits=3))",
        "lgreco(family=mixed, reference=powersgd(rank=2), period=6, warmup=0, first=0, window=2)"));

// At each step of a period: within the window, while curves are measured, while a plan is solved.
// There are two layers to plan for, so that a rank has none whose curve it measures.
TEST(GradientState, KeepsWhatIsUnderWayOfTheNextPlan) {
  constexpr int kSteps = 13;
  std::mutex mutex;
  std::set<std::string> parts;
  std::vector<std::vector<GradientState>> of_steps(kSteps, std::vector<GradientState>(3));
  run_ranks(3, [&](RankContext& ctx) {
    const CompressionOptions compression(
        "lgreco(family=quantize, period=8, warmup=0, first=0, window=3)");
    Training whole(ctx, compression);
    std::vector<GradientState> states;
    std::vector<Net> nets(kSteps);
    for (int step = 0; step < kSteps; ++step) {
      states.push_back(whole.ddp.state());
      copy_weights(*whole.net, nets[step]);
      whole.run(step, step + 1);
    }
    EXPECT_NE(whole.ddp.plan().text(), Training(ctx, compression).ddp.plan().text());
    for (int step = 0; step < kSteps; ++step) {
      Training resumed(ctx, compression);
      resumed.take_weights(nets[step]);
      resumed.ddp.load_state(states[step]);
      resumed.run(step, kSteps);
      EXPECT_EQ(whole.ddp.plan().text(), resumed.ddp.plan().text()) << "from step " << step;
      EXPECT_EQ(whole.ddp.parameters_crc32c(), resumed.ddp.parameters_crc32c())
          << "from step " << step;
      const std::lock_guard lock(mutex);
      for (const auto& [name, tensor] : states[step])
        if (name.starts_with("next_plan/")) parts.insert(name);
      of_steps[step][static_cast<std::size_t>(ctx.rank)] = states[step];
    }
  });
  EXPECT_THAT(parts, ElementsAre("next_plan/curves", "next_plan/left_out", "next_plan/means",
                                 "next_plan/steps", "next_plan/sums"));
  // A part of a job of three ranks.
  for (const auto& states : of_steps)
    for (const auto& [name, tensor] : merge_states(states, 1))
      EXPECT_FALSE(name.starts_with("next_plan/")) << name;
}

TEST(GradientState, FitsAnotherWorldOnceMerged) {
  const CompressionOptions compression("topk(density=0.05)");
  std::mutex mutex;
  std::vector<GradientState> states(2);
  run_ranks(2, [&](RankContext& ctx) {
    Training training(ctx, compression);
    training.run(0, 5);
    const GradientState state = training.ddp.state();
    const std::lock_guard lock(mutex);
    states[static_cast<std::size_t>(ctx.rank)] = state;
  });
  const GradientState merged = merge_states(states, 3);
  run_ranks(3, [&](RankContext& ctx) {
    Training training(ctx, compression);
    training.ddp.load_state(merged);
    const GradientState taken = training.ddp.state();
    for (const auto& [name, tensor] : merged) EXPECT_TRUE(at::equal(tensor, taken.at(name)));
    training.run(5, 8);
    EXPECT_TRUE(training.ddp.replicas_equal());
  });
  // What is owed to the mean is what it was.
  const auto name = "averager/residual/first";
  EXPECT_TRUE(at::allclose(merged.at(name), (states[0].at(name) + states[1].at(name)) / 2));
  states[1].at("steps") += 1;
  EXPECT_THROW(merge_states(states, 3), InvalidArgument);
  states.pop_back();
  EXPECT_THROW(merge_states(states, 3), InvalidArgument);
  EXPECT_THROW(merge_states({}, 3), InvalidArgument);
}

TEST(GradientState, MistakesOfOneRankAreToldToAll) {
  const auto loading = [](const std::function<void(GradientState&, int)>& change) {
    return errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      Training training(ctx, CompressionOptions("topk(density=0.05)"));
      training.run(0, 2);
      GradientState state = training.ddp.state();
      change(state, ctx.rank);
      Training other(ctx, CompressionOptions("topk(density=0.05)"));
      try {
        other.ddp.load_state(state);
      } catch (...) {
        other.run(0, 1);  // nothing was changed, and all go on
        throw;
      }
    });
  };
  const auto on_rank_1 = [](std::function<void(GradientState&)> change) {
    return [change](GradientState& state, int rank) {
      if (rank == 1) change(state);
    };
  };
  EXPECT_THAT(loading(on_rank_1([](auto& state) { state.at("steps") += 1; })),
              Each(HasSubstr("saved state")));
  EXPECT_THAT(loading(on_rank_1([](auto& state) { state.erase("steps"); })),
              Each(HasSubstr("'steps'")));
  EXPECT_THAT(
      loading(on_rank_1([](auto& state) { state.at("averager/residual/first") = at::zeros({3}); })),
      Each(HasSubstr("1536")));
  EXPECT_THAT(
      loading(on_rank_1([](auto& state) { state["averager/residual/third"] = at::zeros({3}); })),
      Each(HasSubstr("'third'")));
  EXPECT_THAT(loading(on_rank_1([](auto& state) { state.at("world") += 1; })),
              Each(HasSubstr("merge_states")));
  EXPECT_THAT(loading(on_rank_1([](auto& state) { state["plan"] = at::Tensor(); })),
              Each(HasSubstr("'plan'")));
  EXPECT_THAT(loading([](auto& state, int) { state["velocity"] = at::zeros({3}); }),
              Each(HasSubstr("'velocity'")));
  const auto order_of = [&](std::initializer_list<std::int64_t> numbers) {
    return on_rank_1([order = at::tensor(std::vector<std::int64_t>(numbers))](auto& state) {
      state["buckets"] = order;
    });
  };
  EXPECT_THAT(loading(order_of({2, 1, 0})), Each(HasSubstr("order of buckets")));
  EXPECT_THAT(loading(order_of({0, 0, 1})),
              Each(AllOf(HasSubstr("rank 1"), HasSubstr("order of the buckets"))));
}

constexpr const char* kAdaptive =
    "lgreco(family=topk, reference=0.05, period=6, warmup=0, first=0, window=2)";

TEST(GradientState, APlanNeedsItsPolicyAndLayers) {
  const std::pair<const char*, const char*> mistakes[] = {
      {"policy", "lgreco"}, {"layers", "2 layers"}, {"text", "the saved plan"}};
  for (const auto& [mistake, expected] : mistakes) {
    const std::string wrong = mistake;
    const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      Training training(ctx, CompressionOptions(kAdaptive));
      training.run(0, 6);
      GradientState state = training.ddp.state();
      ASSERT_TRUE(state.contains("plan"));
      CompressionOptions compression(wrong == "policy" ? "topk(density=0.05)" : kAdaptive);
      if (wrong == "layers") compression.overrides = {{"second", "none"}};
      if (wrong == "text") state["plan"] = at::zeros({3}, at::kByte);
      Training other(ctx, compression);
      try {
        other.ddp.load_state(state);
      } catch (...) {
        other.run(0, 1);
        throw;
      }
    });
    EXPECT_THAT(errors, Each(HasSubstr(expected))) << mistake;
  }
}

TEST(GradientState, GoesBackToBeforeThePlan) {
  run_ranks(2, [](RankContext& ctx) {
    Training training(ctx, CompressionOptions(kAdaptive));
    const GradientState start = training.ddp.state();
    Net weights;
    training.run(0, 8);
    const std::string plan = training.ddp.plan().text();
    const std::uint32_t parameters = training.ddp.parameters_crc32c();
    ASSERT_NE(training.ddp.allocation(), nullptr);
    training.take_weights(weights);
    training.ddp.load_state(start);
    EXPECT_EQ(training.ddp.allocation(), nullptr);
    EXPECT_FALSE(training.ddp.state().contains("plan"));
    training.run(0, 8);
    EXPECT_EQ(training.ddp.plan().text(), plan);
    EXPECT_EQ(training.ddp.parameters_crc32c(), parameters);
  });
}

TEST(GradientState, WarmUpIsCountedByTheTrainingNotByTheObject) {
  run_ranks(2, [](RankContext& ctx) {
    CompressionOptions compression("topk(density=0.05)");
    compression.warmup_steps = 3;
    Training training(ctx, compression), resumed(ctx, compression);
    training.run(0, 5);
    resumed.ddp.load_state(training.ddp.state());
    resumed.run(5, 7);
    EXPECT_EQ(training.ddp.summary().warmup_steps, 3);
    EXPECT_EQ(resumed.ddp.summary().warmup_steps, 0);
    EXPECT_GT(resumed.ddp.summary().ratio(), 3);
  });
}

}  // namespace
}  // namespace thinwire
