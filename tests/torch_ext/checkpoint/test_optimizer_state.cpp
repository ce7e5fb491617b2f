// Moments by name: an optimizer that gets them goes on with the same bits, one that optimises other
// pieces gets what belongs to them, and what does not fit is refused.
#include "thinwire/torch_ext/checkpoint/optimizer_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <memory>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using namespace torch::optim;
using ::testing::HasSubstr;

// Experts `first` to `last` of a stacked parameter, and one that every rank has.
struct Model {
  Model(std::int64_t first, std::int64_t last)
      : first_expert(first),
        stacked(at::zeros({last - first, 2, 3}).set_requires_grad(true)),
        shared(at::zeros({4}).set_requires_grad(true)) {}

  NamedTensors pieces() const {
    NamedTensors pieces = {{"shared", shared.detach()}, {"buffer", at::zeros({7})}};
    for (std::int64_t i = 0; i < stacked.size(0); ++i)
      pieces.emplace(concat("expert.", first_expert + i), stacked.detach()[i]);
    return pieces;
  }
  void step(Optimizer& optimizer, std::int64_t number) {
    at::NoGradGuard no_grad;
    // Each expert's gradient depends on its number alone.
    at::Tensor gradient = at::zeros_like(stacked);
    for (std::int64_t i = 0; i < stacked.size(0); ++i)
      gradient[i].fill_(0.1 * static_cast<double>(first_expert + i + 1 + number));
    stacked.mutable_grad() = gradient;
    shared.mutable_grad() = at::full({4}, 0.3 * static_cast<double>(number + 1));
    optimizer.step();
  }

  std::int64_t first_expert;
  at::Tensor stacked, shared;
};

using Make = std::unique_ptr<Optimizer> (*)(std::vector<at::Tensor>);
template <typename Type, typename Options>
std::unique_ptr<Optimizer> make_optimizer(std::vector<at::Tensor> parameters) {
  if constexpr (std::is_same_v<Options, SGDOptions>) {
    return std::make_unique<Type>(parameters, Options(0.1).momentum(0.9));
  } else if constexpr (std::is_same_v<Options, RMSpropOptions>) {
    return std::make_unique<Type>(parameters, Options(0.1).momentum(0.9).centered(true));
  } else if constexpr (std::is_same_v<Options, AdagradOptions>) {
    return std::make_unique<Type>(parameters, Options(0.1));
  } else {
    return std::make_unique<Type>(parameters, Options(0.1).amsgrad(true));
  }
}

class OptimizerState : public ::testing::TestWithParam<Make> {};

TEST_P(OptimizerState, AnotherDivisionOfTheExpertsGoesOnWithTheSameBits) {
  Model whole(0, 4);
  const auto optimizer = GetParam()({whole.stacked, whole.shared});
  for (int i = 0; i < 3; ++i) whole.step(*optimizer, i);
  const NamedTensors saved = optimizer_state(*optimizer, whole.pieces());
  EXPECT_THAT(saved, ::testing::Contains(::testing::Key(HasSubstr("expert.2/"))));

  Model part(1, 3);
  const auto other = GetParam()({part.shared, part.stacked});
  {
    at::NoGradGuard no_grad;
    part.stacked.copy_(whole.stacked.narrow(0, 1, 2));
    part.shared.copy_(whole.shared);
  }
  load_optimizer_state(*other, part.pieces(), saved);
  for (int i = 3; i < 6; ++i) {
    whole.step(*optimizer, i);
    part.step(*other, i);
  }
  EXPECT_TRUE(at::equal(part.stacked, whole.stacked.narrow(0, 1, 2)));
  EXPECT_TRUE(at::equal(part.shared, whole.shared));
}

INSTANTIATE_TEST_SUITE_P(Torch, OptimizerState,
                         ::testing::Values(&make_optimizer<SGD, SGDOptions>,
                                           &make_optimizer<Adam, AdamOptions>,
                                           &make_optimizer<AdamW, AdamWOptions>,
                                           &make_optimizer<RMSprop, RMSpropOptions>,
                                           &make_optimizer<Adagrad, AdagradOptions>));

TEST(OptimizerStateErrors, WhatDoesNotFitIsNamed) {
  Model model(0, 2);
  AdamW optimizer({model.stacked, model.shared}, AdamWOptions(0.1));
  EXPECT_TRUE(optimizer_state(optimizer, model.pieces()).empty());  // no step yet
  model.step(optimizer, 0);
  const NamedTensors saved = optimizer_state(optimizer, model.pieces());
  const auto error_of = [&](const NamedTensors& state) -> std::string {
    try {
      load_optimizer_state(optimizer, model.pieces(), state);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  NamedTensors wrong = saved;
  wrong["expert.1/exp_avg"] = at::zeros({5});
  EXPECT_THAT(error_of(wrong), HasSubstr("'expert.1/exp_avg' has shape [5]"));
  wrong = saved;
  wrong["expert.1/step"] = integer_tensor(9);
  EXPECT_THAT(error_of(wrong), HasSubstr("'expert.1' has seen 9 steps"));

  NamedTensors pieces = model.pieces();
  pieces.erase("shared");
  EXPECT_THROW(optimizer_state(optimizer, pieces), InvalidArgument);
  LBFGS other({model.shared});
  EXPECT_THROW(optimizer_state(other, model.pieces()), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
