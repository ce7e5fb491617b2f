#include "thinwire/compressors/allocation/plan_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thinwire::lgreco {
namespace {

using ::testing::HasSubstr;

SolvedPlan plan_of(double budget, Objective objective = Objective::kBytes) {
  const std::vector<Layer> layers = {
      {"first",
       4096,
       0,
       {{"topk(density=0.1, select=exact)", 2000, 1, 0.004},
        {"topk(density=0.01, select=exact)", 200, 2, 0.003}},
       0},
      {"second.weight", 100, 1, {{"identity", 400, 0, 0.001}, {"topk(density=0.1)", 50, 2, 0}}, 0}};
  AllocationOptions options;
  options.budget = budget;
  options.objective = objective;
  return make_plan(layers, options, allocate(layers, options));
}

TEST(PlanTable, ShowsEveryLayerAndTheTotals) {
  EXPECT_EQ(plan_table(plan_of(1)),
            "layer          elements  reference          bytes  error  chosen              bytes  "
            "error  saving\n"
            "first             4,096  topk(density=0.1)  2,000      1  topk(density=0.01)    200  "
            "    2  10.00x\n"
            "second.weight       100  topk(density=0.1)     50      2  identity              400  "
            "    0   0.12x\n"
            "total             4,196                     2,050      3                        600  "
            "    2   3.42x\n");
}

TEST(PlanTable, SummaryInOneLine) {
  EXPECT_EQ(plan_summary(plan_of(1)),
            "600 bytes instead of 2,050 (3.42x less), error 2 instead of 3");
  EXPECT_THAT(plan_summary(plan_of(1, Objective::kTime)), HasSubstr("ms instead of 4 ms"));
  EXPECT_THAT(plan_summary(plan_of(0.1)), HasSubstr("the budget cannot be met"));
}

}  // namespace
}  // namespace thinwire::lgreco
