#include "thinwire/common/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "thinwire/tests/support/error_of.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

TEST(Spec, ParsesNamesAndArguments) {
  const Spec spec = Spec::parse(" quantize( bits=4 ,rounding = stochastic ) ");
  EXPECT_EQ(spec.name, "quantize");
  ASSERT_EQ(spec.arguments.size(), 2u);
  EXPECT_EQ(spec.arguments[0].key, "bits");
  EXPECT_EQ(spec.arguments[0].text, "4");
  EXPECT_EQ(spec.str(), "quantize(bits=4, rounding=stochastic)");
}

TEST(Spec, ParsesNestedSpecs) {
  const Spec spec = Spec::parse("lgreco(family=quantize, reference=quantize(bits=4), budget=1.5)");
  ASSERT_EQ(spec.arguments.size(), 3u);
  ASSERT_EQ(spec.arguments[1].nested.size(), 1u);
  EXPECT_EQ(spec.arguments[1].nested[0].name, "quantize");
  EXPECT_EQ(Spec::parse(spec.str()).str(), spec.str());
}

TEST(Spec, ParsesLists) {
  const auto specs = Spec::parse_list("identity; cast(bf16);quantize(bits=4)");
  ASSERT_EQ(specs.size(), 3u);
  EXPECT_EQ(specs[1].str(), "cast(bf16)");
  EXPECT_EQ(Spec::parse("f()").str(), "f");
}

TEST(Spec, ErrorsNamePositionAndExpectation) {
  const auto parse = [](const char* text) { return error_of([&] { Spec::parse(text); }); };
  EXPECT_THAT(parse(""), AllOf(HasSubstr("expected a name"), HasSubstr("position 1")));
  EXPECT_THAT(parse("4bit"), HasSubstr("expected a name at position 1, found '4'"));
  EXPECT_THAT(parse("topk(density=)"), HasSubstr("a value for 'density' at position 14"));
  EXPECT_THAT(parse("topk(density=0.1"), HasSubstr("expected ',' or ')'"));
  EXPECT_THAT(parse("topk(density=0.1) x"), HasSubstr("expected the end at position 19"));
  EXPECT_THAT(parse("topk(,)"), HasSubstr("an argument at position 6"));
}

TEST(Spec, RefusesHostileDepth) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "f(";
  EXPECT_THAT(error_of([&] { Spec::parse(text); }), HasSubstr("at most 16 nested specs"));
}

TEST(SpecReader, ReadsEveryKindOfValue) {
  const Spec spec = Spec::parse("x(a=3, b=0.5, c=on, d=l2, e=cast(bf16))");
  SpecReader read(spec);
  EXPECT_EQ(read.integer("a", 0, 1, 8), 3);
  EXPECT_EQ(read.number("b", 0, 0, 1), 0.5);
  EXPECT_TRUE(read.flag("c", false));
  EXPECT_EQ(read.choice("d", {"minmax", "l2"}, 0), 1u);
  EXPECT_EQ(read.text("e", ""), "cast(bf16)");
  EXPECT_EQ(read.integer("f", 7, 1, 8), 7);
  EXPECT_NO_THROW(read.finish());
}

TEST(SpecReader, PositionalValuesFillParametersInOrder) {
  const Spec spec = Spec::parse("cast(fp16, scale=2, 8)");
  SpecReader read(spec);
  EXPECT_EQ(read.text("dtype", ""), "fp16");
  EXPECT_EQ(read.integer("scale", 1, 0, 9), 2);
  EXPECT_EQ(read.integer("width", 1, 0, 9), 8);
  EXPECT_NO_THROW(read.finish());
}

TEST(SpecReader, ErrorsNameValueRangeAndNearestName) {
  const auto message = [](const char* text) {
    return error_of([&] {
      const Spec spec = Spec::parse(text);
      SpecReader read(spec);
      read.integer("bits", 4, 1, 8);
      read.choice("norm", {"minmax", "linf", "l2"}, 0);
      read.number("density", 0.5, 0, 1, true);
      read.finish();
    });
  };
  EXPECT_THAT(message("q(bits=9)"), HasSubstr("'bits' to be an integer from 1 to 8"));
  EXPECT_THAT(message("q(bits=9)"), HasSubstr("at position 8, found '9'"));
  EXPECT_THAT(message("q(bits=4x)"), HasSubstr("found '4x'"));
  EXPECT_THAT(message("q(norm=linff)"), HasSubstr("did you mean linf?"));
  EXPECT_THAT(message("q(density=0)"), HasSubstr("in (0, 1]"));
  EXPECT_THAT(message("q(density=nan)"), HasSubstr("in (0, 1]"));
  EXPECT_THAT(message("q(bit=4)"),
              AllOf(HasSubstr("no parameter 'bit'"), HasSubstr("it has bits, norm, density"),
                    HasSubstr("did you mean bits?")));
  EXPECT_THAT(message("q(bits=4, bits=5)"), HasSubstr("only once"));
  EXPECT_THAT(message("q(1, l2, 0.5, 7)"), HasSubstr("for the value '7'"));
}

TEST(NearestName, FindsNearAndRefusesFar) {
  EXPECT_EQ(nearest_name("quantise", {"quantize", "topk"}), "quantize");
  EXPECT_EQ(nearest_name("completely", {"quantize", "topk"}), "");
}

}  // namespace
}  // namespace thinwire
