#include "thinwire/torch_ext/adaptive/automatic_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace thinwire {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A job in which only the time of messages depends on the setting: what remains of them after the
// backward pass is exposed.
struct Job {
  double backward = 0.1;
  double network = 0.4;  // uncompressed
  std::vector<double> factor = {1, 0.5, 0.25, 0.125, 0.07};
  std::vector<double> coding = {0, 0.002, 0.004, 0.004, 0.03};

  WindowTimes with(std::size_t setting) const {
    const double messages = network * factor[setting];
    // A last bucket cannot hide whole.
    const double exposed =
        std::max(messages - backward, 0.0) + 0.0005 * factor[setting] + coding[setting] / 10;
    return {
        .averaged = backward + coding[setting] + exposed, .exposed = exposed, .exchange = messages};
  }
};

AutomaticChoice choice() {
  return AutomaticChoice(
      {"none", "cast(bf16)", "quantize(bits=8)", "quantize(bits=4)", "ecsq(as=quantize(bits=4))"});
}

// Windows until the search is over; ends by itself.
int settle(AutomaticChoice& choice, const Job& job) {
  int windows = 0;
  do {
    choice.note(job.with(choice.current()));
    ++windows;
  } while (choice.searching() && windows < 100);
  return windows;
}

TEST(AutomaticChoice, StaysUncompressedWhereThatHides) {
  AutomaticChoice chosen = choice();
  EXPECT_THAT(chosen.reason(), IsEmpty());
  EXPECT_EQ(settle(chosen, {.network = 0.05}), 1);
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_FALSE(chosen.tried()[1].has_value());
  EXPECT_THAT(chosen.reason(), HasSubstr("which hides it"));
}

TEST(AutomaticChoice, TakesTheLeastErrorThatHides) {
  AutomaticChoice chosen = choice();
  EXPECT_EQ(settle(chosen, {.network = 0.35}), 3);
  EXPECT_EQ(chosen.ladder()[chosen.current()], "quantize(bits=8)");
  EXPECT_THAT(chosen.reason(), HasSubstr("with none"));
}

TEST(AutomaticChoice, SendsLeastWhereNothingHides) {
  AutomaticChoice chosen = choice();
  settle(chosen, {.network = 40});
  EXPECT_EQ(chosen.current(), 4u);
}

// Coding costs more than it saves: on a fast link with a slow processor.
TEST(AutomaticChoice, IsNeverSlowerThanUncompressed) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 0.11, .coding = {0, 0.05, 0.07, 0.08, 0.2}};
  EXPECT_EQ(settle(chosen, job), 5);
  EXPECT_EQ(chosen.current(), 0u);
}

TEST(AutomaticChoice, PrefersLessErrorWhereBothAreAsFast) {
  AutomaticChoice chosen = choice();
  // From 8 bits on the processor is what steps wait for.
  const Job job = {.network = 0.41, .coding = {0, 0, 0.010, 0.011, 0.0105}};
  settle(chosen, job);
  EXPECT_EQ(chosen.ladder()[chosen.current()], "quantize(bits=8)");
}

TEST(AutomaticChoice, OneLongStepThatIsMostlyWaitingIsEnough) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 40};
  for (std::size_t setting = 1; setting < 5; ++setting) {
    EXPECT_TRUE(chosen.note_first(job.with(chosen.current())));
    EXPECT_EQ(chosen.current(), setting);
  }
  EXPECT_FALSE(chosen.note_first(job.with(4))) << "there is nothing that sends less";
  EXPECT_FALSE(chosen.note(job.with(4)));
  EXPECT_FALSE(chosen.searching());
  EXPECT_THAT(chosen.reason(), HasSubstr("with none"));
}

TEST(AutomaticChoice, OneStepIsNotEnoughWhereItIsShortOrMostlyHides) {
  AutomaticChoice chosen = choice();
  EXPECT_FALSE(chosen.note_first({.averaged = 0.1, .exposed = 0.09, .exchange = 0.09}));
  EXPECT_FALSE(chosen.note_first({.averaged = 10, .exposed = 4, .exchange = 4}));
  EXPECT_EQ(chosen.current(), 0u);
  settle(chosen, {.network = 0.05});
  EXPECT_FALSE(chosen.note_first({.averaged = 10, .exposed = 9, .exchange = 9}));
}

// The first step was slow for a reason of its own.
TEST(AutomaticChoice, GoesBackToWhatOneStepDoesNotRuleOut) {
  AutomaticChoice chosen = choice();
  const Job job = {.backward = 2, .network = 2.1, .coding = {0, 1, 1, 1, 1}};
  EXPECT_TRUE(chosen.note_first({.averaged = 3.6, .exposed = 2, .exchange = 2}));
  int windows = 0;
  while (chosen.searching() && windows++ < 20) chosen.note(job.with(chosen.current()));
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_NEAR(chosen.tried()[0]->averaged, job.with(0).averaged, 1e-9);
}

TEST(AutomaticChoice, FollowsALinkThatDropsToATenthInTwoWindows) {
  AutomaticChoice chosen = choice();
  Job job = {.network = 0.15};
  settle(chosen, job);
  ASSERT_EQ(chosen.current(), 1u);
  job.network *= 10;
  EXPECT_FALSE(chosen.note(job.with(1))) << "one window may be a disturbance";
  EXPECT_TRUE(chosen.note(job.with(1)));
  EXPECT_EQ(chosen.current(), 2u) << "only what sends less is tried";
  settle(chosen, job);
  EXPECT_EQ(chosen.current(), 4u);
  EXPECT_FALSE(chosen.tried()[0].has_value());
}

TEST(AutomaticChoice, GoesBackWhereTheLinkBecomesFasterThoughAllWasHidden) {
  AutomaticChoice chosen = choice();
  Job job = {.network = 0.35};
  settle(chosen, job);
  ASSERT_EQ(chosen.current(), 2u);
  job.network = 0.05;
  chosen.note(job.with(2));
  EXPECT_TRUE(chosen.note(job.with(2)));
  EXPECT_EQ(chosen.current(), 0u);
  settle(chosen, job);
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_EQ(chosen.searches(), 2);
}

TEST(AutomaticChoice, ALongerBackwardPassHidesMore) {
  AutomaticChoice chosen = choice();
  Job job = {.network = 0.35};
  settle(chosen, job);
  job.backward = 0.4;
  chosen.note(job.with(2));
  chosen.note(job.with(2));
  settle(chosen, job);
  EXPECT_EQ(chosen.current(), 0u);
}

TEST(AutomaticChoice, OneDisturbedWindowChangesNothing) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 0.35};
  settle(chosen, job);
  for (int i = 0; i < 20; ++i) {
    WindowTimes times = job.with(chosen.current());
    if (i % 2 == 0) times.averaged *= 3;
    EXPECT_FALSE(chosen.note(times));
  }
  EXPECT_EQ(chosen.searches(), 1);
}

// A machine whose times jump about for reasons of its own.
TEST(AutomaticChoice, SearchesThatChangeNothingBecomeRare) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 0.05};
  int searching = 0;
  constexpr int kWindows = 1000;
  for (int i = 0; i < kWindows; ++i) {
    WindowTimes times = job.with(chosen.current());
    if (!chosen.searching()) times.averaged *= 2;
    searching += chosen.searching() ? 1 : 0;
    chosen.note(times);
  }
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_GT(chosen.searches(), 5);
  EXPECT_LT(searching, kWindows / 40);
}

TEST(AutomaticChoice, OneSettingAloneIsChosenAtOnce) {
  AutomaticChoice chosen({"none"});
  EXPECT_FALSE(chosen.note({.averaged = 1, .exposed = 0.9, .exchange = 0.9}));
  EXPECT_FALSE(chosen.searching());
  // There is nothing that would send less.
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(chosen.note({.averaged = 9, .exposed = 8.9, .exchange = 8.9}));
  }
}

}  // namespace
}  // namespace thinwire
