#include "thinwire/compressors/allocation/schedule.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace thinwire::lgreco {
namespace {

Schedule schedule_of(const std::string& arguments, std::int64_t least_warmup = 0) {
  return Schedule(parse_policy(Spec::parse("lgreco(" + arguments + ")")), least_warmup);
}

std::vector<std::int64_t> steps_where(std::int64_t steps, const auto& predicate) {
  std::vector<std::int64_t> found;
  for (std::int64_t step = 0; step < steps; ++step) {
    if (predicate(step)) found.push_back(step);
  }
  return found;
}

using Steps = std::vector<std::int64_t>;

TEST(Schedule, TheFirstPlanFollowsTheWarmUp) {
  const Schedule s = schedule_of("period=100, warmup=30, first=0, window=3");
  EXPECT_EQ(s.warmup(), 30);
  EXPECT_EQ(s.first(), 30);
  EXPECT_EQ(s.lag(), 2);
  EXPECT_EQ(steps_where(250, [&](auto x) { return s.opens_window(x); }), (Steps{27, 127, 227}));
  EXPECT_EQ(steps_where(200, [&](auto x) { return s.observes(x); }),
            (Steps{27, 28, 29, 127, 128, 129}));
  EXPECT_EQ(steps_where(250, [&](auto x) { return s.closes_window(x); }), (Steps{29, 129, 229}));
  EXPECT_EQ(steps_where(250, [&](auto x) { return s.gathers_before(x); }), (Steps{32, 132, 232}));
  EXPECT_EQ(steps_where(250, [&](auto x) { return s.switches_before(x); }), (Steps{34, 134, 234}));
}

TEST(Schedule, WithoutWarmUpTheFirstPlanFollowsTheFirstWindow) {
  const Schedule s = schedule_of("period=50, warmup=0, first=0, window=5");
  EXPECT_EQ(s.warmup(), 0);
  EXPECT_EQ(steps_where(20, [&](auto x) { return s.observes(x); }), (Steps{0, 1, 2, 3, 4}));
  EXPECT_EQ(steps_where(60, [&](auto x) { return s.switches_before(x); }), (Steps{7, 57}));
}

TEST(Schedule, TheFirstPlanWaitsForRepresentativeGradients) {
  EXPECT_EQ(schedule_of("warmup=0").first(), 100);
  EXPECT_EQ(schedule_of("warmup=0, period=60").first(), 60);
  EXPECT_EQ(schedule_of("warmup=0, first=20").first(), 20);
  EXPECT_EQ(schedule_of("warmup=0, first=20, window=30").first(), 30);
  EXPECT_EQ(schedule_of("warmup=40, first=20").first(), 40);
  EXPECT_EQ(schedule_of("first=20", 500).first(), 500);
}

TEST(Schedule, TheProgramsWarmUpCountsWhereItIsLonger) {
  EXPECT_EQ(schedule_of("warmup=30", 40).warmup(), 40);
  EXPECT_EQ(schedule_of("warmup=30", 20).warmup(), 30);
}

TEST(Schedule, EveryWindowIsMeasuredBeforeTheNextOneOpens) {
  for (const std::int64_t period : {1, 2, 3, 5, 20, 500}) {
    for (std::int64_t window = 1; window <= period; window = 2 * window + 1) {
      const Schedule s = schedule_of("warmup=0, first=0, period=" + std::to_string(period) +
                                     ", window=" + std::to_string(window));
      // Within a step: gather, switch, then perhaps a new window, observing, closing.
      bool measuring = false, solving = false;
      std::int64_t observed = 0, plans = 0;
      for (std::int64_t step = 0; step < 4 * period + 30; ++step) {
        if (s.gathers_before(step)) {
          EXPECT_TRUE(measuring);
          measuring = false;
          solving = true;
        }
        if (s.switches_before(step)) {
          EXPECT_TRUE(solving);
          solving = false;
          ++plans;
        }
        if (s.opens_window(step)) {
          EXPECT_FALSE(measuring) << "period " << period << ", window " << window;
          observed = 0;
        }
        observed += s.observes(step);
        if (s.closes_window(step)) {
          EXPECT_EQ(observed, window);
          EXPECT_FALSE(measuring);
          measuring = true;
        }
      }
      EXPECT_GE(plans, 3);
    }
  }
}

}  // namespace
}  // namespace thinwire::lgreco
