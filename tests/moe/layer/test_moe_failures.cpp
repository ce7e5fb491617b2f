// What one rank alone does wrong, in the constructor, in a pass or in loading a state, is told to
// all ranks with its text.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/moe/observed_group.h"
#include "thinwire/tests/support/rank_errors.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::errors_of;
using thinwire::testing::RankContext;
using thinwire::testing::RankOptions;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 8;

MoEOptions plain_options() {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = 4, .top_k = 2};
  options.hidden = 4;
  return options;
}

at::Tensor tokens_of(int rank) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(70 + rank));
  return at::randn({6, kDim}, generator);
}

void expect_all_to_say(const std::vector<std::string>& errors, const std::string& part) {
  for (const std::string& error : errors) {
    EXPECT_NE(error.find(part), std::string::npos) << error;
  }
}

// x; its backward throws.
class Trap : public torch::autograd::Function<Trap> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) {
    return x.view_as(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list) {
    throw std::runtime_error("the trap has shut");
  }
};

class ExpertWithTrap : public Expert {
 public:
  explicit ExpertWithTrap(bool armed) : Expert("ExpertWithTrap"), armed_(armed) {
    weight_ = register_parameter("weight", at::ones({kDim}));
  }
  at::Tensor forward(const at::Tensor& rows) override {
    const at::Tensor result = rows * weight_;
    return armed_ ? Trap::apply(result) : result;
  }

 private:
  bool armed_;
  at::Tensor weight_;
};

TEST(Failures, OfABackwardPassReachTheRanksThatWaitForIt) {
  // The timeout is far away: who learns by it would take longer than the watchdog. (Rank 0 fails,
  // as run_ranks() ends its group first: Gloo's threads stay until a peer's connection has gone.)
  RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  const auto errors = errors_of<CommError>(
      3,
      [](RankContext& context) {
        MoEOptions options = plain_options();
        options.factory = [](std::int64_t expert) {
          return std::make_shared<ExpertWithTrap>(expert == 0);  // on rank 0
        };
        MoELayer layer(options, context.group);
        const at::Tensor x = tokens_of(context.rank).requires_grad_();
        layer.forward(x).output.sum().backward();
      },
      patience);
  ASSERT_EQ(errors.size(), 3u);
  expect_all_to_say(errors, "the trap has shut");
}

TEST(Failures, OfAHookInTheBackwardPassToo) {
  RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  const auto errors = errors_of<InvalidArgument>(
      2,
      [](RankContext& context) {
        MoELayer layer(plain_options(), context.group);
        const at::Tensor x = tokens_of(context.rank).requires_grad_();
        if (context.rank == 0) {
          layer.expert_parameters()[0].register_hook(
              [](const at::Tensor&) { throw InvalidArgument("no gradient for me"); });
        }
        // A second pass through the layer, so that the other waits for rank 0 after its hook.
        const at::Tensor once = layer.forward(x).output;
        layer.forward(once).output.sum().backward();
      },
      patience);
  ASSERT_EQ(errors.size(), 2u);
  expect_all_to_say(errors, "no gradient for me");
}

TEST(Failures, TheNextBackwardPassIsNotBlamedForTheLast) {
  // The one that ended well is forgotten: an exception elsewhere stays what it is.
  run_ranks(2, [](RankContext& context) {
    MoELayer layer(plain_options(), context.group);
    layer.forward(tokens_of(context.rank).requires_grad_()).output.sum().backward();
    const at::Tensor x = at::ones({2}, at::kFloat).requires_grad_();
    EXPECT_THROW(Trap::apply(x).sum().backward(), std::runtime_error);
    layer.forward(tokens_of(context.rank).requires_grad_()).output.sum().backward();
  });
}

// As Python's, which is in place before any layer is made.
class AnotherEngine final : public torch::autograd::Engine {
 public:
  static Engine& instance() {
    static auto* engine = new AnotherEngine();
    return *engine;
  }
};

TEST(Failures, OfAnotherEnginesBackwardPassAreToldWithoutTheirText) {
  static torch::autograd::Engine& before = torch::autograd::Engine::get_default_engine();
  torch::autograd::set_default_engine_stub(AnotherEngine::instance);
  RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  run_ranks(
      2,
      [](RankContext& context) {
        MoEOptions options = plain_options();
        options.factory = [](std::int64_t expert) {
          return std::make_shared<ExpertWithTrap>(expert == 0);
        };
        MoELayer layer(options, context.group);
        const at::Tensor loss =
            layer.forward(tokens_of(context.rank).requires_grad_()).output.sum();
        std::string error;
        try {
          loss.backward();
        } catch (const std::exception& thrown) {
          error = thrown.what();
        }
        const char* part =
            context.rank == 0 ? "the trap has shut" : "rank 0 reports: an exception in its";
        EXPECT_NE(error.find(part), std::string::npos) << error;
      },
      patience);
  torch::autograd::set_default_engine_stub([]() -> torch::autograd::Engine& { return before; });
}

TEST(Failures, OfAConstructorOnOneRankAlone) {
  const auto errors = errors_of<InvalidArgument>(3, [](RankContext& context) {
    MoEOptions options = plain_options();
    if (context.rank == 2) options.rows.combine = "quantize(bits=77)";
    try {
      MoELayer layer(options, context.group);
    } catch (const InvalidArgument&) {
      // A refusal before anything began leaves the group as it was.
      MoELayer layer(plain_options(), context.group);
      EXPECT_EQ(layer.forward(tokens_of(context.rank)).output.size(0), 6);
      throw;
    }
  });
  ASSERT_EQ(errors.size(), 3u);
  expect_all_to_say(errors, "77");
}

TEST(Failures, OfLoadingAStateOnOneRankAloneBeforeAnythingChanges) {
  const NamedTensors good = MoELayer(plain_options(), {}).full_state();
  NamedTensors broken = good;
  broken.erase("experts.3.w1");
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& context) {
    MoEOptions options = plain_options();
    options.seed = 5;
    MoELayer layer(options, context.group);
    const NamedTensors before = layer.local_state();
    try {
      layer.load_state(context.rank == 1 ? broken : good);
    } catch (const InvalidArgument&) {
      for (const auto& [name, tensor] : layer.local_state()) {
        EXPECT_TRUE(at::equal(tensor, before.at(name))) << name;
      }
      throw;
    }
  });
  ASSERT_EQ(errors.size(), 2u);
  expect_all_to_say(errors, "experts.3.w1");
}

// Its weight has one element that is all of them, which cannot be written to.
class UnwritableExpert : public Expert {
 public:
  UnwritableExpert() : Expert("UnwritableExpert") {
    weight_ = register_parameter("weight", at::ones({1}).expand({kDim}));
  }
  at::Tensor forward(const at::Tensor& rows) override { return rows * weight_; }

 private:
  at::Tensor weight_;
};

TEST(Failures, OfWritingALoadedStateReachTheOthers) {
  RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  const auto errors = errors_of<CommError>(
      2,
      [](RankContext& context) {
        MoEOptions options = plain_options();
        options.router.experts = 2;
        options.factory = [](std::int64_t expert) -> std::shared_ptr<Expert> {
          if (expert == 0) return std::make_shared<UnwritableExpert>();
          return std::make_shared<ExpertWithTrap>(false);
        };
        MoELayer layer(options, context.group);
        NamedTensors state = layer.full_state();
        layer.load_state(state);
        layer.forward(tokens_of(context.rank));
      },
      patience);
  ASSERT_EQ(errors.size(), 2u);
  expect_all_to_say(errors, "single memory location");
}

// A collective that one rank alone cannot even start; the others are in it.
TEST(Failures, OfStartingACollectiveReachTheRanksInIt) {
  struct Case {
    const char* collective;
    std::function<void(const c10::intrusive_ptr<c10d::ProcessGroup>&)> run;
  };
  const auto make_layer = [](const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    MoEOptions options = plain_options();
    options.router.gate = Gate::kSigmoidBias;
    return std::make_unique<MoELayer>(options, group);
  };
  const Case cases[] = {
      {"all_to_all", [&](const auto& group) { make_layer(group)->forward(tokens_of(0)); }},
      {"all_gather",  // why rank 1 cannot go on
       [&](const auto& group) {
         const at::Tensor tokens = tokens_of(0);
         make_layer(group)->forward(group->getRank() == 1 ? tokens.narrow(1, 0, 2) : tokens);
       }},
      {"all_reduce", [&](const auto& group) { make_layer(group)->update_expert_bias(); }},
      {"broadcast", [](const auto& group) { MoELayer(plain_options(), {}, group); }},
  };
  RankOptions patience;
  patience.timeout = std::chrono::minutes(5);
  patience.watchdog = std::chrono::seconds(60);
  for (const Case& one : cases) {
    const auto errors = errors_of<CommError>(
        2,
        [&](RankContext& context) {
          one.run(testing::observed_group(context.group,
                                          [&](const std::string& collective, std::int64_t) {
                                            if (context.rank == 0 && collective == one.collective)
                                              throw Error("no room to start");
                                          }));
        },
        patience);
    ASSERT_EQ(errors.size(), 2u) << one.collective;
    expect_all_to_say(errors, "rank 0 reports: no room to start");
  }
}

TEST(Failures, TokensOfAnotherTypeThanTheExpertsAreNamedOnEveryRank) {
  for (const auto type : {at::kBFloat16, at::kHalf, at::kDouble}) {
    const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& context) {
      MoELayer layer(plain_options(), context.group);
      layer.forward(context.rank == 1 ? tokens_of(1).to(type) : tokens_of(0));
    });
    ASSERT_EQ(errors.size(), 2u);
    expect_all_to_say(errors, concat("rank 1 of the expert exchange: tokens of ",
                                     c10::toString(type), " for experts of Float"));
  }
}

TEST(Failures, TokensOfAnotherDeviceAreNamedOnEveryRank) {
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& context) {
    MoELayer layer(plain_options(), context.group);
    layer.forward(context.rank == 1 ? tokens_of(1).to(at::kMeta) : tokens_of(0));
  });
  ASSERT_EQ(errors.size(), 2u);
  expect_all_to_say(errors,
                    "rank 1 of the expert exchange: tokens in host memory expected, got them "
                    "on meta");
  const auto routed = errors_of<InvalidArgument>(2, [&](RankContext& context) {
    DispatcherOptions options;
    options.dim = kDim;
    options.experts = 2;
    RouteRequest request;
    request.expert_rows = {1, 1};
    if (context.rank == 0) request.device = at::kMeta;
    TokenDispatcher::make(context.group, options)->route(request);
  });
  expect_all_to_say(routed, "got them on meta");
}

TEST(Failures, ALongReasonArrivesWhole) {
  const std::string reason(700, 'x');
  const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& context) {
    DispatcherOptions options;
    options.dim = kDim;
    options.experts = 2;
    RouteRequest request;
    request.expert_rows = {1, 1};
    if (context.rank == 0) request.failure = reason;
    TokenDispatcher::make(context.group, options)->route(request);
  });
  expect_all_to_say(errors, reason);
}

// Bytes and seconds can be read while another rank is waited for, also when bases are made.
TEST(Telemetry, NeverWaitsForTheNetwork) {
  MoEOptions options = plain_options();
  options.rows = parse_rows("spectral(bits=4, refresh=1)");
  run_ranks(2, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    const auto pass = [&] {
      layer.forward(tokens_of(context.rank).requires_grad_()).output.sum().backward();
      layer.zero_grad();
    };
    pass();
    if (context.rank == 0) {
      std::thread waiting(pass);
      const auto start = Clock::now();
      while (seconds_since(start) < 0.2) layer.wire_bytes();
      context.store->set("read", std::vector<std::uint8_t>{1});
      waiting.join();
    } else {
      // Comes only when the other rank has read; a reader that waits is ended by the watchdog.
      context.store->wait({"read"});
      pass();
    }
  });
}

}  // namespace
}  // namespace thinwire::moe
