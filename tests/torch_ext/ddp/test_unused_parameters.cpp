// find_unused_parameters with error feedback: what a layer is owed reaches it, whether no rank uses
// it for a while or all use it with a gradient of zero.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace thinwire {
namespace {

using testing::RankContext;
using testing::run_ranks;

at::Tensor normal(std::uint64_t seed, at::IntArrayRef shape) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::kFloat);
}

struct TwoPaths : torch::nn::Module {
  TwoPaths() {
    first = register_parameter("first", normal(1, {64, 64}) * 0.2);
    spare = register_parameter("spare", normal(2, {64, 64}) * 0.2);
  }
  // Without `use` the second path is not part of the graph.
  at::Tensor forward(const at::Tensor& x, std::optional<double> use) {
    const at::Tensor y = at::linear(x, first);
    return use ? y + *use * at::linear(x, spare) : y;
  }
  at::Tensor first, spare;
};

class UnusedParameters : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

// One gradient, then `gap` steps in which nobody uses the layer, then steps whose gradient is zero:
// in the end the layer has got the whole mean gradient.
TEST_P(UnusedParameters, NothingThatALayerIsOwedIsLost) {
  const auto& [spec, gap] = GetParam();
  run_ranks(2, [&, spec = spec, gap = gap](RankContext& ctx) {
    const auto net = std::make_shared<TwoPaths>();
    DistributedDataParallel ddp(net, ctx.group,
                                {.compression = spec, .find_unused_parameters = true});
    const auto input = [](int step, int rank) {
      return normal(static_cast<std::uint64_t>(100 + 10 * step + rank), {16, 64});
    };
    at::Tensor wanted = at::zeros({64, 64}), got = at::zeros({64, 64});
    for (int rank = 0; rank < 2; ++rank) {
      const auto copy = std::make_shared<TwoPaths>();
      copy->forward(input(0, rank), 1).pow(2).mean().backward();
      wanted += copy->spare.grad() / 2;
    }
    for (int step = 0; step < 60 + gap; ++step) {
      std::optional<double> use = 0;
      if (step == 0) use = 1;
      if (step > 0 && step <= gap) use.reset();
      ddp.zero_grad();
      ddp.forward(input(step, ctx.rank), use).pow(2).mean().backward();
      if (use) got += net->spare.grad();
    }
    EXPECT_LT(((got - wanted).norm() / wanted.norm()).item<double>(), 0.01);
  });
}

INSTANTIATE_TEST_SUITE_P(Specs, UnusedParameters,
                         ::testing::Combine(::testing::Values("topk(density=0.1)",
                                                              "quantize(bits=4, error_feedback=on)",
                                                              "powersgd(rank=4)"),
                                            ::testing::Values(0, 7)));

}  // namespace
}  // namespace thinwire
