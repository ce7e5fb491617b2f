// Which backward passes are averaged, and what is said of those that cannot be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::Ddp;
using ::testing::Each;
using testing::errors_of;
using testing::expect_same_gradients;
using testing::expect_same_parameters;
using testing::gradients_alone;
using ::testing::HasSubstr;
using testing::inputs;
using testing::loss_of;
using testing::Net;
using testing::RankContext;
using testing::run_ranks;

// Of several buckets.
DistributedDataParallelOptions static_graph(bool views = false) {
  return {.bucket_cap_mb = 0.004, .gradient_as_bucket_view = views, .static_graph = true};
}

// ---- static_graph ------------------------------------------------------------------------------

class StaticGraph : public ::testing::TestWithParam<std::tuple<int, bool, bool>> {};

TEST_P(StaticGraph, EqualsOneProcessWithAllBatches) {
  const auto [world, views, use_spare] = GetParam();
  const auto alone = testing::trained_alone(world, 6, use_spare);
  run_ranks(world, [&, views = views, use_spare = use_spare](RankContext& ctx) {
    auto net = std::make_shared<Net>(static_cast<std::uint64_t>(ctx.rank) + 1);
    Ddp ddp(net, ctx.group, static_graph(views));
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 6; ++step) {
      testing::train_step(ddp, optimizer, ctx.rank, step, use_spare);
      EXPECT_EQ(ddp.summary().steps, step + 1);
    }
    EXPECT_EQ(net->spare.grad().defined(), use_spare);
    expect_same_parameters(*net, *alone);
    EXPECT_TRUE(ddp.replicas_equal());
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, StaticGraph,
                         ::testing::Combine(::testing::Values(1, 2, 3), ::testing::Bool(),
                                            ::testing::Bool()));

// Gradients of three batches a step, of which the first two are added up without an exchange.
at::Tensor accumulated_loss(Net& net, int rank, int step) {
  at::Tensor loss = at::zeros({});
  for (int part = 0; part < 3; ++part) {
    const auto x = inputs(rank, 10 * step + part);
    loss = loss + loss_of(net.forward(x, part != 1).first, x);
  }
  return loss;
}

TEST(BackwardPasses, AStaticGraphMayBeginWithinNoSync) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, static_graph());
    for (int step = 0; step < 4; ++step) {
      ddp.zero_grad();
      for (int part = 0; part < 3; ++part) {
        const auto x = inputs(ctx.rank, 10 * step + part);
        std::unique_ptr<NoSync> local;
        if (part < 2) local.reset(new NoSync(ddp.no_sync()));
        loss_of(ddp.forward(x, part != 1).first, x).backward();
      }
      EXPECT_EQ(ddp.summary().steps, step + 1);
      expect_same_gradients(*net, *gradients_alone(2, [&](Net& alone, int rank) {
        return accumulated_loss(alone, rank, step);
      }));
    }
  });
}

// Computes its part of the net again in the backward pass, which is a backward pass within one.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static at::Tensor part(const Net& net, const at::Tensor& h) {
    return at::tanh(
        at::linear(at::relu(at::linear(h, net.first, net.bias)), net.first.t().contiguous()));
  }
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& h,
                            std::int64_t net) {
    ctx->saved_data["h"] = h.detach();
    ctx->saved_data["net"] = net;
    return part(*reinterpret_cast<const Net*>(net), h);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const at::AutoGradMode enabled(true);
    const auto h = ctx->saved_data["h"].toTensor().clone().set_requires_grad(true);
    const auto y = part(*reinterpret_cast<const Net*>(ctx->saved_data["net"].toInt()), h);
    torch::autograd::backward({y}, gradients);
    return {h.grad(), at::Tensor()};
  }
};

struct CheckpointedNet : Net {
  using Net::Net;
  at::Tensor forward(const at::Tensor& x, bool again) {
    at::Tensor h = x.clone().set_requires_grad(true);
    const auto self = reinterpret_cast<std::int64_t>(static_cast<Net*>(this));
    for (int layer = 0; layer < 2; ++layer)
      h = again ? Checkpoint::apply(h, self) : Checkpoint::part(*this, h);
    return h.narrow(1, 0, 1) + at::linear(at::ones({48}), second);
  }
};

TEST(BackwardPasses, AStaticGraphMayUseParametersInSeveralCheckpoints) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<CheckpointedNet>(1);
    DistributedDataParallel ddp(net, ctx.group, static_graph());
    for (int step = 0; step < 4; ++step) {
      ddp.zero_grad();
      const auto x = inputs(ctx.rank, step);
      loss_of(ddp.forward(x, true), x).backward();
      EXPECT_EQ(ddp.summary().steps, step + 1);
      CheckpointedNet alone(1);
      for (int rank = 0; rank < 2; ++rank) {
        const auto their_x = inputs(rank, step);
        (loss_of(alone.forward(their_x, false), their_x) / 2).backward();
      }
      expect_same_gradients(*net, alone);
    }
  });
}

TEST(BackwardPasses, AStaticGraphThatChangesIsNoticed) {
  const auto errors = errors_of<Error>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, static_graph());
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 3; ++step)
      testing::train_step(ddp, optimizer, ctx.rank, step, step < 2);
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("1 of 4 parameters have got no gradient: 'spare'"),
                                 HasSubstr("static_graph"))));
}

// ---- forward and backward passes in other numbers than one each ---------------------------------

class PassesOf : public ::testing::TestWithParam<DistributedDataParallelOptions> {};

TEST_P(PassesOf, ThreeForwardPassesThenThreeBackwardPassesAreAveraged) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, GetParam());
    for (int step = 0; step < 3; ++step) {
      ddp.zero_grad();
      std::vector<at::Tensor> losses;
      for (int part = 0; part < 3; ++part) {
        const auto x = inputs(ctx.rank, 10 * step + part);
        losses.push_back(loss_of(ddp.forward(x, true).first, x));
      }
      for (const at::Tensor& loss : losses) loss.backward();
      expect_same_gradients(*net, *gradients_alone(2, [&](Net& alone, int rank) {
        at::Tensor loss = at::zeros({});
        for (int part = 0; part < 3; ++part) {
          const auto x = inputs(rank, 10 * step + part);
          loss = loss + loss_of(alone.forward(x, true).first, x);
        }
        return loss;
      }));
      EXPECT_EQ(ddp.summary().steps, 3 * (step + 1));
    }
  });
}

TEST_P(PassesOf, TwoBackwardPassesOfOneForwardPassAreAveraged) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group, GetParam());
    for (int step = 0; step < 3; ++step) {
      ddp.zero_grad();
      const auto x = inputs(ctx.rank, step);
      const auto loss = loss_of(ddp.forward(x, true).first, x);
      loss.backward({}, /*retain_graph=*/true);
      loss.backward();
      expect_same_gradients(*net, *gradients_alone(2, [&](Net& alone, int rank) {
        const auto their_x = inputs(rank, step);
        return 2 * loss_of(alone.forward(their_x, true).first, their_x);
      }));
      EXPECT_EQ(ddp.summary().steps, 2 * (step + 1));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Options, PassesOf,
    ::testing::Values(DistributedDataParallelOptions{.bucket_cap_mb = 0.004},
                      DistributedDataParallelOptions{.find_unused_parameters = true},
                      DistributedDataParallelOptions{.gradient_as_bucket_view = true},
                      DistributedDataParallelOptions{.bucket_cap_mb = 0.004,
                                                     .static_graph = true}));

TEST(BackwardPasses, ForwardPassesWithoutABackwardPassDoNoHarm) {
  run_ranks(2, [](RankContext& ctx) {
    const auto alone = testing::trained_alone(2, 4);
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 4; ++step) {
      ddp.forward(inputs(ctx.rank, 99), true);
      testing::train_step(ddp, optimizer, ctx.rank, step);
      const at::NoGradGuard no_grad;
      ddp.forward(inputs(ctx.rank, 98), true);
    }
    expect_same_parameters(*net, *alone);
  });
}

// ---- no_sync() ----------------------------------------------------------------------------------

TEST(BackwardPasses, TheForwardPassDecidesWhetherItsBackwardPassIsAveraged) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    const auto x = inputs(ctx.rank, 0), y = inputs(ctx.rank, 1);
    const auto averaged = loss_of(ddp.forward(x, true).first, x);
    at::Tensor local;
    {
      const auto guard = ddp.no_sync();
      local = loss_of(ddp.forward(y, true).first, y);
    }
    local.backward();
    EXPECT_EQ(ddp.summary().steps, 0) << "a backward pass outside of the guard";
    Net mine(1);
    loss_of(mine.forward(y, true).first, y).backward();
    expect_same_gradients(*net, mine);
    {
      const auto guard = ddp.no_sync();
      averaged.backward();
    }
    EXPECT_EQ(ddp.summary().steps, 1) << "a backward pass within the guard";
    expect_same_gradients(*net, *gradients_alone(2, [](Net& alone, int rank) {
      const auto a = inputs(rank, 0), b = inputs(rank, 1);
      return loss_of(alone.forward(a, true).first, a) + loss_of(alone.forward(b, true).first, b);
    }));
  });
}

TEST(BackwardPasses, GuardsOfNoSyncMayStandWithinEachOther) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    const auto x = inputs(ctx.rank, 0);
    const auto outer = ddp.no_sync();
    { const auto inner = ddp.no_sync(); }
    loss_of(ddp.forward(x, true).first, x).backward();
    // A term that depends on the parameters alone.
    net->first.pow(2).sum().backward();
    EXPECT_EQ(ddp.summary().steps, 0);
  });
}

// ---- results of forward() that the loss does not use --------------------------------------------

// Each result depends on a parameter of its own.
struct TwoHeads : Net {
  using Net::Net;
  std::map<std::string, std::optional<at::Tensor>> forward(const at::Tensor& x) {
    const auto h = at::relu(at::linear(x, first, bias));
    return {{"second", at::linear(h, second)},
            {"spare", h.narrow(1, 0, 40).matmul(spare)},
            {"none", std::nullopt}};
  }
};

TEST(BackwardPasses, ResultsMayStayOutOfTheLossWhereUnusedParametersAreFound) {
  run_ranks(2, [](RankContext& ctx) {
    auto net = std::make_shared<TwoHeads>(1);
    DistributedDataParallel ddp(net, ctx.group, {.find_unused_parameters = true});
    for (int step = 0; step < 3; ++step) {
      ddp.zero_grad();
      const auto x = inputs(ctx.rank, step);
      auto results = ddp.forward(x);
      results["second"]->mul_(1);  // a result may be changed in place
      loss_of(*results["second"], x).backward();
      EXPECT_EQ(ddp.summary().steps, step + 1);
      EXPECT_FALSE(net->spare.grad().defined());
      expect_same_gradients(*net, *gradients_alone(2, [&](Net& alone, int rank) {
        const auto their_x = inputs(rank, step);
        return loss_of(alone.forward(their_x, false).first, their_x);
      }));
    }
  });
}

// ---- what goes wrong ----------------------------------------------------------------------------

TEST(BackwardPasses, AParameterWithoutGradientEndsTheBackwardPassWithItsName) {
  const auto errors = errors_of<InvalidArgument>(3, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x, /*use_spare=*/ctx.rank != 1).first, x).backward();
  });
  EXPECT_THAT(errors, Each(AllOf(HasSubstr("1 of 4 parameters have got no gradient: 'spare'"),
                                 HasSubstr("find_unused_parameters"))));
}

TEST(BackwardPasses, AParameterThatWasFrozenIsNamed) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    net->bias.set_requires_grad(false);
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x, true).first, x).backward();
  });
  EXPECT_THAT(errors, Each(HasSubstr("'bias' (which no longer requires one)")));
}

TEST(BackwardPasses, AroundForwardIsNoWayToParameters) {
  for (const int culprits : {1, 2}) {
    const auto errors = errors_of<InvalidArgument>(2, [&](RankContext& ctx) {
      auto net = std::make_shared<Net>(1);
      Ddp ddp(net, ctx.group);
      torch::optim::SGD optimizer(net->parameters(), 0.05);
      testing::train_step(ddp, optimizer, ctx.rank, 0);
      const auto x = inputs(ctx.rank, 1);
      if (ctx.rank < culprits) {
        loss_of(ddp.module()->forward(x, true).first, x).backward();
      } else {
        testing::train_step(ddp, optimizer, ctx.rank, 1);
      }
    });
    EXPECT_THAT(errors, Each(HasSubstr("Call forward() of DistributedDataParallel"))) << culprits;
  }
}

TEST(BackwardPasses, CreateGraphIsRefusedAndAPenaltyByGradWorks) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x, true).first, x)
        .backward({}, /*retain_graph=*/true, /*create_graph=*/true);
  });
  EXPECT_THAT(errors,
              Each(AllOf(HasSubstr("create_graph=true"), HasSubstr("torch::autograd::grad()"))));

  const auto penalised = [](const at::Tensor& y, const at::Tensor& x) {
    const auto slope = torch::autograd::grad({y.sum()}, {x}, {}, std::nullopt, true)[0];
    return loss_of(y, x.detach()) + slope.pow(2).sum();
  };
  run_ranks(2, [&](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    for (int step = 0; step < 3; ++step) {
      ddp.zero_grad();
      const auto x = inputs(ctx.rank, step).set_requires_grad(true);
      penalised(ddp.forward(x, true).first, x).backward();
      EXPECT_EQ(ddp.summary().steps, step + 1);
      expect_same_gradients(*net, *gradients_alone(2, [&](Net& alone, int rank) {
        const auto their_x = inputs(rank, step).set_requires_grad(true);
        return penalised(alone.forward(their_x, true).first, their_x);
      }));
    }
  });
}

TEST(BackwardPasses, TrainingGoesOnAfterAnErrorOfTheModel) {
  run_ranks(2, [](RankContext& ctx) {
    const auto alone = testing::trained_alone(2, 3);
    auto net = std::make_shared<Net>(1);
    Ddp ddp(net, ctx.group);
    torch::optim::SGD optimizer(net->parameters(), 0.05);
    for (int step = 0; step < 3; ++step) {
      const auto x = inputs(ctx.rank, step);
      const auto y = ddp.forward(x, true).first * 1;
      y.register_hook([](const at::Tensor&) { throw std::runtime_error("a fault of the loss"); });
      EXPECT_THROW(loss_of(y, x).backward(), std::runtime_error);
      testing::train_step(ddp, optimizer, ctx.rank, step);
    }
    expect_same_parameters(*net, *alone);
  });
}

}  // namespace
}  // namespace thinwire
