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

#include <torch/serialize.h>

#include <memory>
#include <sstream>

#include "thinwire/common/error.h"
#include "thinwire/torch_ext/checkpoint/program_parts.h"

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

// As one part of a checkpoint: all that torch::save() keeps, the options too.
TEST_P(OptimizerState, WholeItGoesOnWithTheSameBits) {
  Model whole(0, 4);
  const auto optimizer = GetParam()({whole.stacked, whole.shared});
  for (int i = 0; i < 3; ++i) whole.step(*optimizer, i);
  optimizer->param_groups()[0].options().set_lr(0.025);
  const NamedTensors saved = detail::optimizer_tensors(*optimizer);
  std::ostringstream file;
  torch::save(*optimizer, file);
  const std::string archive = text_of(saved, "archive");
  EXPECT_LT(archive.size(), file.str().size());
  // Nothing as large as the parameters is copied.
  for (const auto& [name, tensor] : detail::optimizer_tensors(*optimizer)) {
    if (name == "archive" || name.ends_with("/step")) continue;
    EXPECT_EQ(tensor.const_data_ptr(), saved.at(name).const_data_ptr()) << name;
  }

  // What one torch::save() has written is loaded as well.
  const NamedTensors as_archive = {{"archive", text_tensor(file.str())}};
  std::vector<std::pair<Model, std::unique_ptr<Optimizer>>> resumed;
  for (const NamedTensors& state : {saved, as_archive}) {
    Model other(0, 4);
    auto loaded = GetParam()({other.stacked, other.shared});
    for (int i = 0; i < 2; ++i) other.step(*loaded, 7 + i);  // is replaced
    const at::NoGradGuard no_grad;
    other.stacked.copy_(whole.stacked);
    other.shared.copy_(whole.shared);
    detail::load_optimizer_tensors(*loaded, state);
    EXPECT_EQ(loaded->param_groups()[0].options().get_lr(), 0.025);
    resumed.emplace_back(std::move(other), std::move(loaded));
  }
  for (int i = 3; i < 6; ++i) {
    whole.step(*optimizer, i);
    for (auto& [model, loaded] : resumed) model.step(*loaded, i);
  }
  for (const auto& [model, loaded] : resumed) {
    EXPECT_TRUE(at::equal(model.stacked, whole.stacked));
    EXPECT_TRUE(at::equal(model.shared, whole.shared));
  }
}

INSTANTIATE_TEST_SUITE_P(Torch, OptimizerState,
                         ::testing::Values(&make_optimizer<SGD, SGDOptions>,
                                           &make_optimizer<Adam, AdamOptions>,
                                           &make_optimizer<AdamW, AdamWOptions>,
                                           &make_optimizer<RMSprop, RMSpropOptions>,
                                           &make_optimizer<Adagrad, AdagradOptions>));

TEST(OptimizerTensors, OneThatHasNotStepIsRestoredAsThat) {
  Model model(0, 2);
  SGD optimizer({model.stacked, model.shared}, SGDOptions(0.1).momentum(0.9));
  const NamedTensors fresh = detail::optimizer_tensors(optimizer);
  EXPECT_EQ(fresh.size(), 1u);
  model.step(optimizer, 0);
  EXPECT_EQ(optimizer.state().size(), 2u);
  detail::load_optimizer_tensors(optimizer, fresh);
  EXPECT_TRUE(optimizer.state().empty());
}

// Its own state may have more than the moments that are known.
TEST(OptimizerTensors, OthersAreKeptAsTorchKeepsThem) {
  struct Mine : SGD {
    using SGD::SGD;
  };
  Model model(0, 2);
  Mine mine({model.stacked, model.shared}, SGDOptions(0.1).momentum(0.9));
  model.step(mine, 0);
  const NamedTensors saved = detail::optimizer_tensors(mine);
  EXPECT_EQ(saved.size(), 1u);
  Model other(0, 2);
  Mine loaded({other.stacked, other.shared}, SGDOptions(0.1).momentum(0.9));
  detail::load_optimizer_tensors(loaded, saved);
  EXPECT_EQ(loaded.state().size(), 2u);
  LBFGS lbfgs({model.shared});
  EXPECT_EQ(detail::optimizer_tensors(lbfgs).size(), 1u);
}

TEST(OptimizerTensors, MomentsOfAnotherModelAreNamed) {
  Model model(0, 2), other(0, 3);
  AdamW optimizer({model.stacked, model.shared}, AdamWOptions(0.1));
  AdamW larger({other.stacked, other.shared}, AdamWOptions(0.1));
  model.step(optimizer, 0);
  NamedTensors saved = detail::optimizer_tensors(optimizer);
  const auto error_of = [&](AdamW& loaded) -> std::string {
    try {
      detail::load_optimizer_tensors(loaded, saved);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(error_of(larger), HasSubstr("the saved '0/exp_avg' has shape [2, 2, 3], its "
                                          "parameter [3, 2, 3]"));
  saved["moments/7/exp_avg"] = at::zeros({4});
  EXPECT_THAT(error_of(optimizer), HasSubstr("of which 6 belong to the 2 parameters"));
}

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
