#include "thinwire/launch/report/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace thinwire::launch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

RunLog run_named(const std::string& name) {
  RunLog run{.name = name, .compression = "quantize(bits=4)", .loss_unit = "nats"};
  run.points = {{.step = 3, .seconds = 1.5, .sent_bytes = 300.0, .train_loss = 0.25}};
  run.layers = {{.step = 3,
                 .layers = {{.name = "a",
                             .shape = {4, 2},
                             .setting = "quantize(bits=4)",
                             .bytes = 32,
                             .payload_bytes = 12,
                             .error = 0.125}}}};
  return run;
}

TEST(ReportPage, HoldsTheNumbersOfTheRuns) {
  const auto data = nlohmann::json::parse(report_data({run_named("one")}, {}));
  const auto& run = data.at("runs").at(0);
  EXPECT_EQ(run.at("name"), "one");
  EXPECT_EQ(run.at("points").at(0).at("bytes"), 300);
  EXPECT_EQ(run.at("points").at(0).at("loss"), 0.25);
  EXPECT_TRUE(run.at("points").at(0).at("accuracy").is_null());
  const auto& layer = run.at("plans").at(0).at("layers").at(0);
  EXPECT_EQ(layer.at("numel"), 8);
  EXPECT_EQ(layer.at("payload"), 12);
  EXPECT_EQ(layer.at("error"), 0.125);
}

TEST(ReportPage, ANameCannotEndTheScript) {
  const std::string page = report_page({run_named("</script><img src=x>")}, {});
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, HasSubstr("\\u003c/script>\\u003cimg"));
}

TEST(ReportPage, IsWhole) {
  const std::string page = report_page({run_named("one")}, {});
  EXPECT_THAT(page, Not(HasSubstr("/*DATA*/")));
  EXPECT_THAT(page, Not(HasSubstr("/*SCRIPT*/")));
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(page, HasSubstr("</html>"));
}

}  // namespace
}  // namespace thinwire::launch
