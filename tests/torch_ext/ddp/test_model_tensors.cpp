// Which tensors of a module are averaged, and changes of them.
#include "thinwire/torch_ext/ddp/model_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::Ddp;
using ::testing::Each;
using testing::error_of;
using testing::errors_of;
using testing::expect_same_gradients;
using ::testing::HasSubstr;
using testing::inputs;
using testing::loss_of;
using testing::Net;
using testing::RankContext;
using testing::run_ranks;

double largest(const at::Tensor& tensor) {
  return at::abs(tensor).max().item<double>();
}

// ---- tied weights -------------------------------------------------------------------------------

struct TiedNet : Net {
  explicit TiedNet(std::uint64_t seed) : Net(seed) {
    register_parameter("alias", first);
    inner = register_module("inner", torch::nn::Linear(32, 4));
    register_module("inner_again", inner.ptr());
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto h = at::linear(at::relu(at::linear(x, first, bias)), first.t());
    return inner(h).sum(1, true) + at::linear(at::linear(x, first), second) + spare.sum() * 0.01;
  }
  torch::nn::Linear inner = nullptr;
};

TEST(ModelTensors, ATensorUnderTwoNamesIsOneUnderItsFirst) {
  const detail::ModelTensors tensors(std::make_shared<TiedNet>(1), {});
  std::vector<std::string> names;
  for (const auto& item : tensors.trained()) names.push_back(item.name);
  EXPECT_THAT(names, ::testing::ElementsAre("first", "bias", "second", "spare", "inner.weight",
                                            "inner.bias"));
  EXPECT_EQ(tensors.parameters().size(), 6u);
}

TEST(ModelTensors, TiedWeightsAreAveragedOnce) {
  run_ranks(2, [](RankContext& ctx) {
    torch::manual_seed(3);
    auto net = std::make_shared<TiedNet>(1);
    DistributedDataParallel ddp(net, ctx.group);
    // The copy of rank 0's weights makes the ranks' seeds irrelevant.
    TiedNet alone(1);
    {
      const at::NoGradGuard no_grad;
      alone.inner->weight.copy_(net->inner->weight);
      alone.inner->bias.copy_(net->inner->bias);
    }
    for (int rank = 0; rank < 2; ++rank) {
      const auto x = inputs(rank, 0);
      (loss_of(alone.forward(x), x) / 2).backward();
    }
    const auto x = inputs(ctx.rank, 0);
    loss_of(ddp.forward(x), x).backward();
    expect_same_gradients(*net, alone);
    EXPECT_EQ(ddp.summary().total.dense_bytes,
              2u * 4 * (48 * 32 + 48 + 48 + 40 * 40 + 4 * 32 + 4) / 2);
  });
}

// ---- tensors that are left alone ----------------------------------------------------------------

TEST(ModelTensors, IgnoredAndRankLocalTensorsStayEveryRanksOwn) {
  for (const bool marked : {false, true}) {
    run_ranks(2, [&](RankContext& ctx) {
      auto net = std::make_shared<Net>(static_cast<std::uint64_t>(ctx.rank) + 1);
      // Of another shape on each rank.
      auto own = net->register_parameter("expert_weight", at::full({2 + ctx.rank}, ctx.rank + 2.f));
      net->seen.fill_(ctx.rank);
      DistributedDataParallelOptions options;
      if (marked) {
        comm::mark_rank_local(own);
        comm::mark_rank_local(net->seen);
      } else {
        options.ignored_parameters = {"expert_*", "seen"};
      }
      Ddp ddp(net, ctx.group, options);
      EXPECT_EQ(own[0].item<float>(), ctx.rank + 2.f);
      EXPECT_EQ(net->seen.item<float>(), static_cast<float>(ctx.rank));
      for (int step = 0; step < 3; ++step) {
        ddp.zero_grad();
        EXPECT_FALSE(own.grad().defined());
        const auto x = inputs(ctx.rank, step);
        (loss_of(ddp.forward(x, true).first, x) + own.sum() * (ctx.rank + 1)).backward();
        EXPECT_EQ(own.grad()[0].item<float>(), ctx.rank + 1.f) << "not averaged";
        EXPECT_EQ(net->seen.item<float>(), static_cast<float>(ctx.rank));
      }
      EXPECT_TRUE(ddp.replicas_equal()) << "what ranks share";
    });
  }
}

TEST(ModelTensors, RanksMustLeaveTheSameTensorsAlone) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Net>(1);
    if (ctx.rank == 1) comm::mark_rank_local(net->spare);
    Ddp ddp(net, ctx.group);
  });
  EXPECT_THAT(errors, Each(HasSubstr("parameter spare")));
}

TEST(ModelTensors, APatternThatFitsNothingIsAMistake) {
  EXPECT_THAT(error_of([] { detail::ModelTensors(std::make_shared<Net>(1), {"expert.*"}); }),
              HasSubstr("'expert.*' in ignored_parameters matches none"));
  EXPECT_THAT(error_of([] { detail::ModelTensors(std::make_shared<Net>(1), {"*"}); }),
              HasSubstr("no parameter that requires a gradient and is not ignored"));
}

// ---- kinds of parameters ------------------------------------------------------------------------

TEST(ModelTensors, SparseGradientsAreRefusedByName) {
  torch::nn::Sequential net(torch::nn::Linear(2, 2),
                            torch::nn::Embedding(torch::nn::EmbeddingOptions(5, 2).sparse(true)));
  EXPECT_THAT(error_of([&] { detail::ModelTensors(net.ptr(), {}); }),
              AllOf(HasSubstr("'1.weight' has sparse gradients"), HasSubstr("sparse(false)")));
  const torch::nn::Embedding alone(torch::nn::EmbeddingOptions(5, 2).sparse(true));
  EXPECT_THAT(error_of([&] { detail::ModelTensors(alone.ptr(), {}); }),
              HasSubstr("'weight' has sparse gradients"));
  EXPECT_EQ(detail::ModelTensors(net.ptr(), {"1.weight"}).trained().size(), 2u);
}

// An embedding that the module does not say is one.
struct Lookup : torch::nn::Module {
  Lookup() { table = register_parameter("table", at::ones({5, 2})); }
  at::Tensor forward(const at::Tensor& x) {
    return at::embedding(table, x, -1, false, /*sparse=*/true);
  }
  at::Tensor table;
};

TEST(ModelTensors, ASparseGradientThatComesUnexpectedIsNamed) {
  const auto errors = errors_of<InvalidArgument>(2, [](RankContext& ctx) {
    auto net = std::make_shared<Lookup>();
    DistributedDataParallel ddp(net, ctx.group);
    ddp.forward(at::tensor({1, 3}, at::kLong)).sum().backward();
  });
  EXPECT_THAT(errors, Each(HasSubstr("the gradient of parameter 'table' is Sparse")));
}

struct ComplexNet : torch::nn::Module {
  ComplexNet() {
    auto generator = at::detail::createCPUGenerator(3);
    const auto random = [&](at::IntArrayRef shape, at::ScalarType type) {
      return at::randn(shape, generator, at::TensorOptions(type));
    };
    small = register_parameter("small", random({3}, at::kComplexFloat));
    wide = register_parameter("wide", random({40, 40}, at::kComplexFloat));
    real = register_parameter("real", random({40, 40}, at::kFloat));
    exact = register_parameter("exact", random({40, 40}, at::kDouble));
  }
  at::Tensor forward(const at::Tensor& x) {
    const auto y = at::matmul(x.to(at::kComplexFloat), wide) + small.sum();
    return at::real(y * at::conj(y)).mean() + (at::matmul(x, real) + 1).pow(2).mean() +
           at::matmul(x.to(at::kDouble), exact).pow(2).mean();
  }
  at::Tensor small, wide, real, exact;
};

TEST(ModelTensors, ComplexAndMixedTypesAreAveragedWhole) {
  for (const char* spec : {"none", "cast(bf16)", "quantize(bits=8)", "topk(density=1)"}) {
    run_ranks(2, [&](RankContext& ctx) {
      auto net = std::make_shared<ComplexNet>();
      DistributedDataParallel ddp(net, ctx.group, {.compression = spec});
      const auto input = [](int rank) { return inputs(rank, 0).narrow(1, 0, 20).repeat({1, 2}); };
      ComplexNet alone;
      for (int rank = 0; rank < 2; ++rank) (alone.forward(input(rank)) / 2).backward();
      ddp.forward(input(ctx.rank)).backward();
      for (const auto& item : alone.named_parameters()) {
        const auto found = net->named_parameters()[item.key()].grad();
        const auto expected = item.value().grad();
        EXPECT_LE(largest(found - expected), 0.02 * largest(expected))
            << spec << ", " << item.key();
      }
      const at::NoGradGuard no_grad;
      for (auto& parameter : net->parameters()) parameter.sub_(parameter.grad() * 0.1);
      EXPECT_TRUE(ddp.replicas_equal()) << spec;
    });
  }
}

// ---- changes after construction -----------------------------------------------------------------

// A broadcast that one rank does not come to holds Gloo up, at its end, until the timeout.
const testing::RankOptions kImpatient = {.timeout = std::chrono::seconds(2)};

TEST(ModelTensors, AConvertedModelIsRefusedByNameOnEveryRank) {
  for (const int converted : {1, 2}) {
    const auto errors = errors_of<InvalidArgument>(
        2,
        [&](RankContext& ctx) {
          auto net = std::make_shared<Net>(1);
          Ddp ddp(net, ctx.group);
          torch::optim::SGD optimizer(net->parameters(), 0.05);
          testing::train_step(ddp, optimizer, ctx.rank, 0);
          if (ctx.rank < converted) ddp.to(torch::kDouble);
          ddp.forward(inputs(ctx.rank, 1).to(net->first.scalar_type()), true);
        },
        kImpatient);
    EXPECT_THAT(errors, Each(HasSubstr("parameter 'first' was Float [48, 32] on the CPU when "
                                       "DistributedDataParallel was made and is Double")));
  }
}

TEST(ModelTensors, ChangesAreNamedInTheNextForwardPass) {
  struct Case {
    const char* expected;
    void (*change)(Net&);
  };
  const Case cases[] = {
      {"'spare'; make a new", [](Net& net) { net.spare.set_requires_grad(true); }},
      {"parameter 'bias' was Float [48]", [](Net& net) { net.bias.set_data(at::zeros({1})); }},
      {"new are 'extra'", [](Net& net) { net.register_parameter("extra", at::zeros({2})); }},
  };
  for (const Case& change : cases) {
    // By one rank alone: the other one learns of it.
    const auto errors = errors_of<InvalidArgument>(
        2,
        [&](RankContext& ctx) {
          auto net = std::make_shared<Net>(1);
          net->spare.set_requires_grad(false);
          Ddp ddp(net, ctx.group);
          torch::optim::SGD optimizer(net->parameters(), 0.05);
          testing::train_step(ddp, optimizer, ctx.rank, 0, false);
          if (ctx.rank == 1) change.change(*net);
          testing::train_step(ddp, optimizer, ctx.rank, 1, false);
        },
        kImpatient);
    EXPECT_THAT(errors, Each(HasSubstr(change.expected)));
  }
}

// ---- a module like others -----------------------------------------------------------------------

TEST(ModelTensors, TheWrapperIsAModuleThatCanBeMoved) {
  run_ranks(2, [](RankContext& ctx) {
    const auto alone = testing::trained_alone(2, 3);
    auto net = std::make_shared<Net>(1);
    auto built = std::make_unique<Ddp>(net, ctx.group);
    {
      const auto x = inputs(ctx.rank, 0);
      loss_of(built->forward(x, true).first, x).backward();
    }
    Ddp ddp = std::move(*built);
    built.reset();
    EXPECT_EQ(ddp.named_parameters()["module.first"].unsafeGetTensorImpl(),
              net->first.unsafeGetTensorImpl());
    torch::optim::SGD optimizer(ddp.parameters(), 0.05);
    for (int step = 0; step < 3; ++step) testing::train_step(ddp, optimizer, ctx.rank, step);
    testing::expect_same_parameters(*net, *alone);
    ddp.eval();
    EXPECT_FALSE(net->is_training());
    net->train();
    EXPECT_TRUE(ddp.is_training());
  });
}

}  // namespace
}  // namespace thinwire
