#include "thinwire/compressors/allocation/plan_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "thinwire/common/error.h"

namespace thinwire::lgreco {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kCurves = R"json({"layers": [
  {"name": "a", "numel": 10, "reference": 1, "candidates": [
    {"spec": "quantize(bits=4)", "bytes": 40, "error": 1, "seconds": 0.5},
    {"spec": "quantize(bits=2)", "bytes": 20, "error": 2, "seconds": 0.25}]},
  {"name": "b", "numel": 20, "reference": 0, "candidates": [
    {"spec": "topk(density=0.1)", "bytes": 200, "error": 2, "seconds": 1},
    {"spec": "topk(density=0.05)", "bytes": 100, "error": 3, "seconds": 1}]}]})json";

std::string curves_with(const std::string& from, const std::string& to) {
  std::string text = kCurves;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(CurveFile, ReadsLayers) {
  const CurveFile file = parse_curves(kCurves, "curves.json");
  ASSERT_EQ(file.layers.size(), 2u);
  EXPECT_TRUE(file.has_seconds());
  EXPECT_EQ(file.layers[1].candidates[1].spec, "topk(density=0.05)");
  EXPECT_EQ(file.layers[0].reference, 1u);
  const CurveFile untimed =
      parse_curves(curves_with("\"error\": 3, \"seconds\": 1", "\"error\": 3"), "c");
  EXPECT_EQ(untimed.first_without_seconds, "layers[1].candidates[1].seconds");
  EXPECT_TRUE(untimed.timed[1][0]);
  EXPECT_FALSE(untimed.timed[1][1]);
}

TEST(CurveFile, RefusesBadCurvesWithThePlace) {
  const struct {
    const char *from, *to, *expected;
  } cases[] = {
      {"\"bytes\": 20", "\"bytes\": -20", "layers[0].candidates[1].bytes: expected a finite"},
      {"\"bytes\": 20", "\"bytes\": \"20\"", "layers[0].candidates[1].bytes: expected a number"},
      {"\"bytes\": 20", "\"bytes\": NaN", "not valid JSON"},
      {"\"bytes\": 20", "\"bytes\": 1e999", "not valid JSON"},
      {"\"bytes\": 20", "\"bytes\": null", "layers[0].candidates[1].bytes: expected a number"},
      {"\"bytes\": 20", "\"bytes\": 20, \"bytes\": 1", "'bytes' occurs twice"},
      {"\"bytes\": 20", "\"byte\": 20", "layers[0].candidates[1]: unknown field 'byte' (did you"},
      {"\"bytes\": 20, ", "", "layers[0].candidates[1]: field 'bytes' is missing"},
      {"\"error\": 3", "\"error\": -0.5", "layers[1].candidates[1].error"},
      {"\"seconds\": 0.25", "\"seconds\": true", "layers[0].candidates[1].seconds"},
      {"quantize(bits=2)", "quantize(", "layers[0].candidates[1].spec: bad spec"},
      {"\"reference\": 1", "\"reference\": 2", "layers[0].reference: index 2 is out of range"},
      {"\"reference\": 1", "\"reference\": -1", "layers[0].reference: expected a whole number"},
      {"\"reference\": 1", "\"reference\": 0.5", "layers[0].reference: expected a whole number"},
      {"\"numel\": 20", "\"numel\": [[[2]]]",
       "layers[1].numel: expected a whole number that is not "
       "negative, found array"},
      {"\"numel\": 20", "\"numel\": 2.5", "layers[1].numel: expected a whole number"},
      {"\"name\": \"b\"", "\"name\": \"a\"", "layers[1].name: 'a' is also the name of layers[0]"},
      {"\"name\": \"b\"", "\"name\": 7", "layers[1].name: expected a text"},
      {"{\"layers\"", "{\"more\": 1, \"layers\"", "unknown field 'more'"},
      {"{\"layers\"", "{\"layer\"", "unknown field 'layer'"},
  };
  for (const auto& [from, to, expected] : cases) {
    try {
      parse_curves(curves_with(from, to), "curves.json");
      ADD_FAILURE() << to;
    } catch (const FileError& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr(expected), HasSubstr("curves.json"))) << to;
    }
  }
  for (const char* text : {"", "[]", "{}", "{\"layers\": {}}", "{\"layers\": [1]}",
                           R"json({"layers": [{"name": "a", "numel": 1, "reference": 0,
                               "candidates": []}]})json"}) {
    EXPECT_THROW(parse_curves(text, "curves.json"), FileError) << text;
  }
}

SolvedPlan small_plan() {
  const auto layers = parse_curves(kCurves, "c").layers;
  const AllocationOptions options;
  return make_plan(layers, options, allocate(layers, options));
}

TEST(PlanFile, RoundTrips) {
  const SolvedPlan plan = small_plan();
  EXPECT_EQ(plan.chosen.bytes, 140);
  const std::string text = plan_text(plan);
  EXPECT_THAT(text,
              AllOf(HasSubstr("\"total_bytes\": 140,"), HasSubstr("\"reference_bytes\": 220")));
  EXPECT_EQ(plan_text(parse_plan(text, "plan.json")), text);
}

TEST(PlanFile, HashIsStableAndFollowsTheChoices) {
  SolvedPlan plan = small_plan();
  const std::uint64_t hash = plan_hash(plan);
  plan.chosen.error += 1e-12;
  EXPECT_EQ(plan_hash(plan), hash);
  plan.layers[0].chosen.spec = "quantize(bits=3)";
  EXPECT_NE(plan_hash(plan), hash);
  std::string text = plan_text(small_plan());
  text.replace(text.find("quantize(bits=4)"), 16, "quantize(bits=5)");
  EXPECT_THROW(parse_plan(text, "plan.json"), FileError);
}

TEST(PlanFile, WritesAndReadsFiles) {
  const auto path = std::filesystem::temp_directory_path() / "thinwire_test_plan_file.json";
  write_text_file(path, plan_text(small_plan()));
  EXPECT_EQ(plan_text(read_plan(path)), plan_text(small_plan()));
  std::filesystem::remove(path);
  EXPECT_THROW(read_plan(path), FileError);
  EXPECT_THROW(write_text_file("/nonexistent/plan.json", ""), FileError);
}

}  // namespace
}  // namespace thinwire::lgreco
