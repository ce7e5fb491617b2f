#include "thinwire/torch_ext/adapter/adapter_switch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/tests/compressors/peft/peft_fixtures.h"
#include "thinwire/tests/support/rank_errors.h"
#include "thinwire/tests/torch_ext/adapter/experts.h"
#include "thinwire/torch_ext/adapter/adapter_broadcast.h"
#include "thinwire/torch_ext/adapter/adapter_state.h"
#include "thinwire/torch_ext/adapter/lora.h"

namespace thinwire {
namespace {

using peft::test::TemporaryDir;
using testing::base_weights;
using testing::copy_of;
using ::testing::Each;
using testing::Experts;
using ::testing::HasSubstr;
using testing::load_weights;
using testing::merge_two;
using testing::random;
using testing::same_bits;
using testing::Weights;

TEST(AddTernary, AddsInPlaceToAnyFloatType) {
  const auto planes = peft::test::random_planes(1000, 0.2, 5);
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    at::Tensor x = random({30, 20}, 4, dtype), expected = x.clone();
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const int trit = planes.view().trit(77 + i);
      if (trit != 0)
        expected.view({-1})[i] = (expected.view({-1})[i].to(at::kFloat) + 0.25 * trit).to(dtype);
    }
    add_ternary(x, 0.25f, planes.view(), 77);
    EXPECT_TRUE(at::equal(x, expected));
  }
  at::Tensor wide = at::zeros({20, 30});
  EXPECT_THROW(add_ternary(wide.t(), 1, planes.view()), InvalidArgument);
  EXPECT_THROW(add_ternary(at::zeros({4}, at::kLong), 1, planes.view()), InvalidArgument);
  EXPECT_THROW(add_ternary(at::zeros({1001}), 1, planes.view()), InvalidArgument);
}

TEST(AdapterSwitch, DeltasEqualTheAppliedFileAndLeaveNoTrace) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const Weights base = base_weights();
  Weights weights = copy_of(base);
  AdapterSwitch model(weights);
  for (const char* name : {"expert1", "expert2", "expert1"}) {
    const peft::PackedFile file(dir / name);
    peft::apply_packed(dir / "base", {&file}, dir / "applied", true);
    model.swap(file);
    EXPECT_EQ(model.current(), file.manifest().id);
    EXPECT_TRUE(same_bits(weights, load_weights(dir / "applied"))) << name;
    EXPECT_FALSE(same_bits(weights, base));
  }
  model.remove();
  EXPECT_EQ(model.current(), "");
  EXPECT_TRUE(same_bits(weights, base));
  model.remove();  // nothing is on
  EXPECT_TRUE(same_bits(weights, base));
}

// While nothing is on, a program may train the weights or load others into them.
TEST(AdapterSwitch, TheBaseIsCheckedAnewAfterTheWeightsChanged) {
  const TemporaryDir dir;
  const Experts experts(dir);
  Weights weights = base_weights();
  AdapterSwitch model(weights);
  const peft::PackedFile file(dir / "expert1");
  model.swap(file);
  model.remove();
  weights.at("a").add_(1);
  const Weights changed = copy_of(weights);
  EXPECT_THROW(model.swap(file), InvalidArgument);
  EXPECT_TRUE(same_bits(weights, changed));
}

// Under an expert they belong to it: what would be restored fits neither other types nor values.
TEST(AdapterSwitch, WeightsThatChangeUnderAnExpertAreNamedAndLeftAlone) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const peft::PackedFile first(dir / "expert1"), second(dir / "expert2");
  const auto refusals = [&](const std::function<void(Weights&)>& change) {
    Weights weights = base_weights();
    AdapterSwitch model(weights);
    AdapterSwitch::Staged staged = model.stage(second);
    model.swap(first);
    change(weights);
    const Weights changed = copy_of(weights);
    std::vector<std::string> texts;
    const std::function<void()> actions[] = {[&] { model.remove(); }, [&] { model.swap(second); },
                                             [&] { model.stage(second); },
                                             [&] { model.commit(std::move(staged)); }};
    for (const auto& action : actions) {
      try {
        action();
        texts.emplace_back("no error");
      } catch (const InvalidArgument& error) {
        texts.emplace_back(error.what());
      }
    }
    EXPECT_TRUE(same_bits(weights, changed));
    EXPECT_EQ(model.current(), first.manifest().id);
    return texts;
  };
  // As Module::to() does it, to a wider type and to a narrower one and back.
  EXPECT_THAT(refusals([](Weights& w) { w["a"].set_data(w["a"].to(at::kDouble)); }),
              Each(HasSubstr("weight 'a' is Double [300, 70] and was Float [300, 70]")));
  EXPECT_THAT(refusals([](Weights& w) {
                w["b"].set_data(w["b"].to(at::kHalf));
                w["b"].set_data(w["b"].to(at::kBFloat16));
              }),
              Each(HasSubstr("weight 'b' is BFloat16 [129]")));
  // Another storage, at the address that the allocator gave the one before.
  EXPECT_THAT(refusals([](Weights& w) {
                const at::Tensor old = w["b"].detach();
                at::Tensor other = at::from_blob(
                    old.mutable_data_ptr(), old.sizes(), [old](void*) {}, old.options());
                other.add_(1);
                w["b"].set_data(other);
              }),
              Each(HasSubstr("weight 'b' is BFloat16 [129]")));
  // As a load and a step of an optimizer do.
  EXPECT_THAT(refusals([](Weights& w) {
                w["c"].copy_(at::zeros({40, 7}));
              }),
              Each(HasSubstr("weight 'c' is Half [40, 7]")));
  EXPECT_THAT(refusals([](Weights& w) { w["steps"].add_(1); }),
              Each(HasSubstr("weight 'steps' is Long [5]")));
}

TEST(AdapterSwitch, WeightsThatChangeAfterAnExpertWasStagedAreNamed) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const peft::PackedFile file(dir / "expert1");
  Weights weights = base_weights();
  AdapterSwitch model(weights);
  AdapterSwitch::Staged staged = model.stage(file);
  weights["a"].set_data(weights["a"].to(at::kDouble));
  const Weights changed = copy_of(weights);
  try {
    model.commit(std::move(staged));
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("was staged; stage it again"));
  }
  EXPECT_TRUE(same_bits(weights, changed));
  EXPECT_EQ(model.current(), "");
}

TEST(AdapterSwitch, DenseMergesAreSwitchedToo) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const peft::PackedFile first(dir / "expert1");
  merge_two(dir);
  const peft::PackedFile merged(dir / "merged");
  peft::apply_packed(dir / "base", {&merged}, dir / "applied", true);
  Weights weights = base_weights();
  AdapterSwitch model(weights);
  model.swap(first);
  model.swap(merged);  // its values come from the bare weights, not from the first expert's
  EXPECT_TRUE(same_bits(weights, load_weights(dir / "applied")));
  model.remove();
  EXPECT_TRUE(same_bits(weights, base_weights()));
}

TEST(AdapterSwitch, AdaptersReplaceTheirTensors) {
  const TemporaryDir dir;
  const Weights before = {{"x.ia3_l", at::full({50}, 1.0f)}, {"y.ia3_l", at::full({20, 3}, 1.0f)}};
  Weights tuned = copy_of(before);
  for (auto& [name, tensor] : tuned) tensor.add_(random(tensor.sizes(), 9), 0.1);
  write_adapter({R"({"peft_type": "IA3"})", tuned}, dir / "adapter", false);
  peft::pack(peft::open_adapter_dir(dir / "adapter"), dir / "packed", {.density = 0.3});
  Weights weights = copy_of(before);
  for (auto& [name, tensor] : weights) tensor.mul_(3);  // whatever was there
  const Weights bare = copy_of(weights);
  AdapterSwitch model(weights);
  model.swap(peft::PackedFile(dir / "packed"));
  EXPECT_TRUE(same_bits(weights, read_adapter(dir / "packed").tensors));
  model.remove();
  EXPECT_TRUE(same_bits(weights, bare));
}

// Factors mean another change with another scale.
TEST(AdapterSwitch, ExpertsOfAnotherScaleAreRefused) {
  const TemporaryDir dir;
  torch::nn::Linear net(12, 10);
  torch::nn::Sequential holder(net);
  const auto expert_of = [&](const std::string& name, LoraOptions options) {
    options.rank = 4;
    Lora lora(holder.ptr(), options);
    {
      at::NoGradGuard no_grad;
      for (at::Tensor& factor : lora.parameters()) factor.uniform_(-1, 1);
    }
    write_adapter(lora.state(), dir / (name + ".in"), false);
    peft::pack(peft::open_adapter_dir(dir / (name + ".in")), dir / name, {.density = 0.5});
    return peft::PackedFile(dir / name);
  };
  const auto same = expert_of("same", {.alpha = 8}), other = expert_of("other", {.alpha = 64});
  const auto root = expert_of("root", {.alpha = 8, .rslora = true});
  Lora lora(holder.ptr(), LoraOptions{.rank = 4, .alpha = 8});
  const Weights before = copy_of(lora.factors());
  const auto refusal = [](AdapterSwitch& on, const peft::PackedFile& file) {
    try {
      on.swap(file);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  AdapterSwitch model(lora);
  EXPECT_THAT(refusal(model, other), HasSubstr("lora_alpha 64, expected lora_alpha 8"));
  EXPECT_THAT(refusal(model, root), HasSubstr("lora_alpha 8 with rslora, expected lora_alpha 8"));
  EXPECT_TRUE(same_bits(lora.factors(), before));
  EXPECT_EQ(refusal(model, same), "");
  EXPECT_TRUE(same_bits(lora.factors(), read_adapter(dir / "same").tensors));
  model.remove();
  EXPECT_TRUE(same_bits(lora.factors(), before));
  // Without their configuration nobody knows what the weights mean.
  AdapterSwitch bare(lora.factors());
  EXPECT_THAT(refusal(bare, same), HasSubstr("give AdapterSwitch the Lora"));
  lora.merge();
  EXPECT_THROW(AdapterSwitch{lora}, InvalidArgument);
}

TEST(AdapterSwitch, WhatDoesNotFitChangesNothing) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const auto error_with = [&](const std::function<void(Weights&)>& change) {
    Weights weights = base_weights();
    change(weights);
    const Weights before = copy_of(weights);
    AdapterSwitch model(weights);
    std::string text;
    try {
      model.swap(peft::PackedFile(dir / "expert1"));
    } catch (const InvalidArgument& error) {
      text = error.what();
      EXPECT_TRUE(same_bits(weights, before));
      EXPECT_EQ(model.current(), "");
    }
    return text;
  };
  EXPECT_EQ(error_with([](Weights&) {}), "");
  EXPECT_THAT(error_with([](Weights& w) { w.erase("b"); }), HasSubstr("holds 'b'"));
  EXPECT_THAT(error_with([](Weights& w) { w["d"] = at::zeros({2}); }),
              HasSubstr("lacks the weight 'd'"));
  EXPECT_THAT(error_with([](Weights& w) {
                w["a"] = at::zeros({70, 300});
              }),
              HasSubstr("'a' is F32 [300, 70]"));
  EXPECT_THAT(error_with([](Weights& w) { w["b"] = w["b"].to(at::kHalf); }),
              HasSubstr("the weight is F16"));
  EXPECT_THAT(error_with([](Weights& w) { w["a"][0][0].add_(1); }), HasSubstr("wrong base"));
  EXPECT_THROW(AdapterSwitch(Weights{{"a", at::zeros({3, 4}).t()}}), InvalidArgument);
}

TEST(BroadcastExpert, PutsTheSameExpertOnEveryRank) {
  const TemporaryDir dir;
  const Experts experts(dir);
  const peft::PackedFile file(dir / "expert2");
  peft::apply_packed(dir / "base", {&file}, dir / "applied", true);
  const Weights expected = load_weights(dir / "applied");
  testing::run_ranks(3, [&](testing::RankContext& ctx) {
    Weights weights = base_weights();
    AdapterSwitch model(weights);
    model.swap(peft::PackedFile(dir / "expert1"));
    const auto path = ctx.rank == 1 ? dir / "expert2" : std::filesystem::path("nowhere");
    EXPECT_EQ(broadcast_expert(model, *ctx.group, 1, path), file.manifest().id);
    EXPECT_TRUE(same_bits(weights, expected));
  });
}

TEST(BroadcastExpert, AFailureOnOneRankKeepsTheOldExpertOnAll) {
  const TemporaryDir dir;
  const Experts experts(dir);
  {
    std::ifstream in(dir / "expert2", std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    bytes[bytes.size() / 2] ^= 1;
    std::ofstream(dir / "damaged", std::ios::binary) << bytes;
  }
  const auto errors = [&](const std::string& name, bool other_base) {
    return testing::errors_of<FileError>(3, [&](testing::RankContext& ctx) {
      Weights weights = base_weights();
      if (other_base && ctx.rank == 2) weights["a"][3][3].add_(1);
      AdapterSwitch model(weights);
      if (!other_base) model.swap(peft::PackedFile(dir / "expert1"));
      const Weights before = copy_of(weights);
      const std::string id = model.current();
      try {
        broadcast_expert(model, *ctx.group, 0, dir / name);
      } catch (...) {
        EXPECT_TRUE(same_bits(weights, before));
        EXPECT_EQ(model.current(), id);
        throw;
      }
    });
  };
  EXPECT_THAT(errors("damaged", false), Each(HasSubstr("rank 0: ")));
  EXPECT_THAT(errors("missing", false), Each(HasSubstr("is not a file")));
  EXPECT_THAT(errors("expert2", true), Each(HasSubstr("rank 2: wrong base")));
  EXPECT_THAT(errors("expert2", false), Each("no error"));
  // Ranks that name different roots, one of them no rank at all.
  for (const int odd : {0, 7}) {
    const auto roots = testing::errors_of<InvalidArgument>(3, [&](testing::RankContext& ctx) {
      Weights weights = base_weights();
      AdapterSwitch model(weights);
      broadcast_expert(model, *ctx.group, ctx.rank == 2 ? odd : 1, dir / "expert2");
    });
    EXPECT_THAT(roots, Each(HasSubstr("rank 0 names rank 1")));
  }
}

}  // namespace
}  // namespace thinwire
