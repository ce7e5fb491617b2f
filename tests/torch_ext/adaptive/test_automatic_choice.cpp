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
    return {.step = backward + coding[setting] + exposed, .exposed = exposed, .exchange = messages};
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

// What hides may slow the computing that it hides behind.
TEST(AutomaticChoice, DoesNotStopAtWhatHidesButMakesStepsLonger) {
  AutomaticChoice chosen = choice();
  // With a cast nothing is left after the backward pass, which is twice as long.
  const std::vector<WindowTimes> windows = {{.step = 0.13, .exposed = 0.03, .exchange = 0.1},
                                            {.step = 0.20, .exposed = 0.001, .exchange = 0.05},
                                            {.step = 0.11, .exposed = 0.001, .exchange = 0.03}};
  for (std::size_t setting = 0; setting < windows.size(); ++setting) {
    ASSERT_EQ(chosen.current(), setting);
    chosen.note(windows[setting]);
  }
  EXPECT_FALSE(chosen.searching());
  EXPECT_EQ(chosen.ladder()[chosen.current()], "quantize(bits=8)");
}

// A disturbance in the window of the faster one of two would decide between them.
TEST(AutomaticChoice, MeasuresTwiceWhatIsClose) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 0.9, .coding = {0, 0, 0, 0.004, 0.06}};
  std::vector<int> windows(5);
  while (chosen.searching()) {
    const std::size_t setting = chosen.current();
    WindowTimes times = job.with(setting);
    if (++windows[setting] == 1 && setting == 3) times.step *= 1.5;
    chosen.note(times);
    ASSERT_LE(windows[setting], 2);
  }
  EXPECT_EQ(windows, std::vector<int>({1, 1, 1, 2, 1}));
  EXPECT_EQ(chosen.ladder()[chosen.current()], "quantize(bits=4)");
  EXPECT_NEAR(chosen.tried()[3]->step, job.with(3).step, 1e-9);
}

// What was ruled out before is not out of the question where the network has changed meanwhile.
TEST(AutomaticChoice, BeginsAnewWhereMessagesBecomeFasterDuringTheSearch) {
  AutomaticChoice chosen = choice();
  Job job = {.network = 0.9, .coding = {0, 0, 0, 0.004, 0.012}};
  std::vector<std::size_t> settings;
  while (chosen.searching() && settings.size() < 20) {
    if (settings.size() == 5) job.network = 0.05;
    settings.push_back(chosen.current());
    chosen.note(job.with(chosen.current()));
  }
  EXPECT_EQ(settings, std::vector<std::size_t>({0, 1, 2, 3, 4, 3, 0}));
  EXPECT_EQ(chosen.current(), 0u);
}

// No step changes so much that all would be searched anew, but another setting was faster.
TEST(AutomaticChoice, GoesBackToWhatWasFasterWhereStepsHaveBecomeLonger) {
  AutomaticChoice chosen = choice();
  std::vector<double> seconds = {4, 2, 1.8, 1.12, 1};
  std::vector<std::size_t> settings;
  const auto window = [&] {
    settings.push_back(chosen.current());
    const double step = seconds[chosen.current()];
    chosen.note({.step = step, .exposed = 0.1, .exchange = 0.1});
  };
  while (chosen.searching()) window();
  ASSERT_EQ(chosen.current(), 4u);
  seconds[4] = 1.22;
  settings.clear();
  window();
  EXPECT_FALSE(chosen.searching()) << "one window may be a disturbance";
  window();
  EXPECT_TRUE(chosen.searching());
  while (chosen.searching()) window();
  EXPECT_EQ(chosen.current(), 3u);
  EXPECT_EQ(settings, std::vector<std::size_t>({4, 4, 3, 3, 4})) << "only what is close is tried";
  for (int i = 0; i < 20; ++i) window();
  EXPECT_EQ(chosen.searches(), 2);
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
  EXPECT_FALSE(chosen.note_first({.step = 0.07, .exposed = 0.06, .exchange = 0.06}));
  EXPECT_FALSE(chosen.note_first({.step = 10, .exposed = 4, .exchange = 4}));
  EXPECT_EQ(chosen.current(), 0u);
  settle(chosen, {.network = 0.05});
  EXPECT_FALSE(chosen.note_first({.step = 10, .exposed = 9, .exchange = 9}));
}

// The first step was slow for a reason of its own.
TEST(AutomaticChoice, GoesBackToWhatOneStepDoesNotRuleOut) {
  AutomaticChoice chosen = choice();
  const Job job = {.backward = 2, .network = 2.1, .coding = {0, 1, 1, 1, 1}};
  EXPECT_TRUE(chosen.note_first({.step = 3.6, .exposed = 2, .exchange = 2}));
  int windows = 0;
  while (chosen.searching() && windows++ < 20) chosen.note(job.with(chosen.current()));
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_NEAR(chosen.tried()[0]->step, job.with(0).step, 1e-9);
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

// A step with what is ruled out may take as long as a hundred others.
TEST(AutomaticChoice, LongerStepsOnASlowLinkDoNotBringBackWhatSendsMuch) {
  AutomaticChoice chosen = choice();
  Job job = {.network = 4};
  settle(chosen, job);
  ASSERT_EQ(chosen.current(), 4u);
  job.backward = 0.45;  // from a step of 0.31 s to one of 0.48
  std::vector<std::size_t> tried;
  for (int i = 0; i < 12; ++i) {
    chosen.note(job.with(chosen.current()));
    tried.push_back(chosen.current());
  }
  EXPECT_EQ(chosen.searches(), 2);
  EXPECT_EQ(chosen.current(), 4u);
  EXPECT_THAT(tried, ::testing::Not(::testing::Contains(::testing::Lt(2u))));
  EXPECT_THAT(tried, ::testing::Contains(2u)) << "what might have become as fast is tried";
  EXPECT_THAT(chosen.reason(), HasSubstr("with none")) << "what was found is still known";
}

TEST(AutomaticChoice, OneDisturbedWindowChangesNothing) {
  AutomaticChoice chosen = choice();
  const Job job = {.network = 0.35};
  settle(chosen, job);
  for (int i = 0; i < 20; ++i) {
    WindowTimes times = job.with(chosen.current());
    if (i % 2 == 0) times.step *= 3;
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
    if (!chosen.searching()) times.step *= 2;
    searching += chosen.searching() ? 1 : 0;
    chosen.note(times);
  }
  EXPECT_EQ(chosen.current(), 0u);
  EXPECT_GT(chosen.searches(), 5);
  EXPECT_LT(searching, kWindows / 40);
}

TEST(AutomaticChoice, OneSettingAloneIsChosenAtOnce) {
  AutomaticChoice chosen({"none"});
  EXPECT_FALSE(chosen.note({.step = 1, .exposed = 0.9, .exchange = 0.9}));
  EXPECT_FALSE(chosen.searching());
  // There is nothing that would send less.
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(chosen.note({.step = 9, .exposed = 8.9, .exchange = 8.9}));
  }
}

}  // namespace
}  // namespace thinwire
