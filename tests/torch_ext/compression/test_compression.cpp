#include "thinwire/torch_ext/compression/compression.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const std::vector<LayerInfo> kLayers = {{"conv.weight", {32, 16, 3, 3}},
                                        {"conv.bias", {32}},
                                        {"norm.weight", {4096}},
                                        {"small.weight", {10, 10}},
                                        {"fc.weight", {100, 100}}};

TEST(MakePlan, LeavesFlatAndSmallLayersUncompressed) {
  const comm::Plan plan = make_plan(kLayers, "quantize(bits=4)").plan;
  EXPECT_NE(plan.of("conv.weight").codec, nullptr);
  EXPECT_NE(plan.of("fc.weight").codec, nullptr);
  EXPECT_EQ(plan.of("conv.bias").codec, nullptr);
  EXPECT_EQ(plan.of("norm.weight").codec, nullptr);
  EXPECT_EQ(plan.of("small.weight").codec, nullptr);
}

TEST(MakePlan, LimitsCanBeMoved) {
  CompressionOptions options("quantize(bits=4)");
  options.min_numel = 0;
  options.compress_1d = true;
  const comm::Plan plan = make_plan(kLayers, options).plan;
  for (const LayerInfo& layer : kLayers) EXPECT_NE(plan.of(layer.name).codec, nullptr);
}

TEST(MakePlan, TheFirstMatchingOverrideWins) {
  CompressionOptions options("quantize(bits=4)");
  options.overrides = {{"conv.*", "cast(bf16)"}, {"*.weight", "quantize(bits=8)"}};
  const comm::Plan plan = make_plan(kLayers, options).plan;
  EXPECT_THAT(plan.of("conv.bias").text(), HasSubstr("bf16"));
  EXPECT_THAT(plan.of("conv.weight").text(), HasSubstr("bf16"));
  EXPECT_THAT(plan.of("small.weight").text(), HasSubstr("bits=8"));
}

TEST(MakePlan, RefusesWhatCannotBeMeant) {
  const auto with = [](auto change) {
    CompressionOptions options("quantize(bits=4)");
    change(options);
    return [options] { make_plan(kLayers, options); };
  };
  EXPECT_THAT(with([](auto& o) {
                o.overrides = {{"cnov.*", "none"}};
              }),
              ThrowsMessage<InvalidArgument>(HasSubstr("'cnov.*' matches none")));
  EXPECT_THAT(with([](auto& o) {
                o.overrides = {{"fc.*", "tokp"}};
              }),
              ThrowsMessage<InvalidArgument>(HasSubstr("topk")));
  EXPECT_THAT(with([](auto& o) { o.warmup_steps = -1; }),
              ThrowsMessage<InvalidArgument>(HasSubstr("-1")));
  EXPECT_THAT(with([](auto& o) { o.spec = "quantize(bits=4"; }),
              ThrowsMessage<InvalidArgument>(HasSubstr("position")));
}

// One sentence, with everything that could have been meant.
TEST(MakePlan, AnUnknownNameIsToldTheKnownOnes) {
  const auto plan = [](const char* spec) { return [spec] { make_plan(kLayers, spec); }; };
  EXPECT_THAT(
      plan("lgrecco(family=topk)"),
      ThrowsMessage<InvalidArgument>(
          "unknown compression 'lgrecco': it is none of the codecs (identity, cast, quantize, "
          "topk, "
          "randomk, onebit, terngrad, ternary, powersgd, ecsq, spectral), of the policies (lgreco, "
          "auto) or "
          "'none'; did "
          "you mean 'lgreco'?"));
  EXPECT_THAT(plan("quantise"),
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("lgreco"), HasSubstr("'quantize'?"))));
  EXPECT_THAT(plan("non"), ThrowsMessage<InvalidArgument>(HasSubstr("did you mean 'none'?")));
  EXPECT_THAT(plan("zip"), ThrowsMessage<InvalidArgument>(EndsWith("or 'none'")));
}

TEST(MakePlan, APolicyGivesEveryLayerItsFeedback) {
  const auto setting = [](const std::string& spec) {
    const auto adaptive = make_plan(kLayers, spec).adaptive;
    EXPECT_TRUE(adaptive.has_value());
    return adaptive->setting("quantize(bits=3)");
  };
  EXPECT_TRUE(setting("lgreco").uses_second_residual());
  EXPECT_FALSE(setting("lgreco(family=quantize, second_residual=off)").uses_second_residual());
  EXPECT_TRUE(setting("lgreco(family=quantize, second_residual=off)").uses_feedback());
  EXPECT_FALSE(setting("lgreco(error_feedback=off)").uses_feedback());
  EXPECT_EQ(setting("lgreco(residual_decay=0.5, residual_reset=7)").feedback.decay, 0.5);
  EXPECT_EQ(setting("lgreco(residual_decay=0.5, residual_reset=7)").feedback.reset_every, 7);
  // Momentum correction is for chosen entries, and a policy may also choose not to compress.
  EXPECT_THROW(setting("lgreco(family=topk, momentum=0.9)"), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
