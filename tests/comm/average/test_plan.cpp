#include "thinwire/comm/average/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(LayerSetting, UncompressedHasManySpellings) {
  EXPECT_EQ(parse_layer_setting("none").codec, nullptr);
  EXPECT_EQ(parse_layer_setting("identity").codec, nullptr);
  EXPECT_EQ(parse_layer_setting("none").text(), "none");
}

TEST(LayerSetting, FeedbackFollowsTheCodecUnlessTold) {
  EXPECT_TRUE(parse_layer_setting("quantize(bits=4, rounding=nearest)").uses_feedback());
  EXPECT_FALSE(parse_layer_setting("quantize(bits=4, rounding=stochastic)").uses_feedback());
  EXPECT_FALSE(parse_layer_setting("quantize(bits=4, rounding=nearest, error_feedback=off)")
                   .uses_feedback());
  EXPECT_TRUE(parse_layer_setting("quantize(bits=4, rounding=stochastic, error_feedback=on)")
                  .uses_feedback());
}

TEST(LayerSetting, TextTellsSettingsApart) {
  const auto text = [](const char* spec) { return parse_layer_setting(spec).text(); };
  EXPECT_EQ(text("quantize(bits=4)"), text("quantize( 4 )"));
  EXPECT_NE(text("quantize(bits=4)"), text("quantize(bits=5)"));
  EXPECT_NE(text("quantize(bits=4)"), text("quantize(bits=4, error_feedback=off)"));
  EXPECT_NE(text("quantize(bits=4)"), text("quantize(bits=4, residual_decay=0.5)"));
}

// Logs hold it, and advise and people read it from there.
TEST(LayerSetting, SpecIsReadAsTheSameSetting) {
  for (const char* spec :
       {"none", "cast(bf16)", "quantize(bits=4)", "onebit", "quantize(error_feedback=off)",
        "cast(fp16, error_feedback=on)", "quantize(residual_decay=0.95, residual_reset=100)",
        "quantize(bits=4, second_residual=off)", "terngrad(second_residual=on)",
        "topk(density=0.05, momentum=0.9)", "topk(momentum=0.5, nesterov=on, ramp=400)",
        "ternary(ramp=8, residual_decay=0.5)", "ecsq(as=quantize(bits=4), residual_decay=0.9)",
        "powersgd(rank=2)", "spectral(bits=1)"}) {
    const LayerSetting setting = parse_layer_setting(spec);
    const LayerSetting again = parse_layer_setting(setting.spec());
    EXPECT_EQ(again.spec(), setting.spec()) << spec;
    EXPECT_EQ(again.uses_feedback(), setting.uses_feedback()) << spec;
    EXPECT_EQ(again.uses_second_residual(), setting.uses_second_residual()) << spec;
    EXPECT_EQ(again.feedback.decay, setting.feedback.decay) << spec;
    EXPECT_EQ(again.feedback.reset_every, setting.feedback.reset_every) << spec;
    EXPECT_EQ(again.momentum.has_value(), setting.momentum.has_value()) << spec;
    EXPECT_EQ(again.ramp_steps, setting.ramp_steps) << spec;
  }
  EXPECT_EQ(parse_layer_setting("onebit(error_feedback=on)").spec(),
            parse_layer_setting("onebit").spec());
  LayerSetting fixed = parse_layer_setting("onebit");
  fixed.may_be_skipped = false;
  EXPECT_EQ(fixed.spec(), parse_layer_setting("onebit").spec());
  EXPECT_NE(fixed.text(), parse_layer_setting("onebit").text());
}

TEST(LayerSetting, RefusesWhatItDoesNotKnow) {
  const auto parse = [](const char* spec) { return [spec] { parse_layer_setting(spec); }; };
  EXPECT_THAT(parse("quantise(bits=4)"),
              ThrowsMessage<InvalidArgument>(HasSubstr("did you mean 'quantize'")));
  EXPECT_THAT(parse("quantize(bits=9)"), ThrowsMessage<InvalidArgument>(HasSubstr("from 1 to 8")));
  EXPECT_THAT(parse("quantize(error_feedback=maybe)"),
              ThrowsMessage<InvalidArgument>(HasSubstr("auto, on, off")));
  EXPECT_THAT(parse("quantize(residual_decay=2)"),
              ThrowsMessage<InvalidArgument>(HasSubstr("in [0, 1]")));
  EXPECT_THAT(parse("none(bits=4)"), ThrowsMessage<InvalidArgument>(HasSubstr("no parameters")));
}

TEST(Plan, UnknownLayersAreUncompressed) {
  Plan plan;
  plan.set("a", parse_layer_setting("cast(bf16)"));
  EXPECT_NE(plan.of("a").codec, nullptr);
  EXPECT_EQ(plan.of("b").codec, nullptr);
  EXPECT_THAT(plan.text(), HasSubstr("a: cast(format=bf16)"));
}

}  // namespace
}  // namespace thinwire::comm
