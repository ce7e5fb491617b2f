#include "thinwire/comm/average/memory/shared_steps.h"

#include <gtest/gtest.h>

#include <cmath>

namespace thinwire::comm {
namespace {

constexpr const char* kSpec = "ecsq(bits=2)";

EcsqOptions bits(double value) {
  return {.goal = EcsqOptions::Goal::kBits, .value = value};
}

// A group whose values take `at_one` bits with a step of 1, and one less with twice the step.
struct Source {
  std::string name;
  std::int64_t numel;
  double at_one;

  SlotReport report(float step) const {
    const double taken = std::max(0.01, at_one - std::log2(step));
    return {.bits = {taken, taken}, .log2_step = std::log2(step)};
  }
};

TEST(SharedSteps, ReachTheBitsOfTheSpecWithOneStepForAllGroups) {
  const std::vector<Source> sources = {{"a", 1000, 3.0}, {"b", 3000, 0.5}};
  SharedSteps steps;
  double slots = 0;
  std::array<float, 2> last{};
  for (int step = 0; step < 30; ++step) {
    slots = 0;
    for (const Source& source : sources) {
      const auto use = steps.use(kSpec, bits(2), source.name, source.numel, step);
      if (source.name == "b") {
        EXPECT_EQ(use.step, last);
      }
      last = use.step;
      if (step == 0) {
        EXPECT_EQ(use.step[0], 0);
      }
      slots += use.slot_bits[kToOwners] * static_cast<double>(source.numel) / 4000;
      // The first step is each rank's own.
      steps.report(kSpec, source.name, source.report(use.step[0] > 0 ? use.step[0] : 0.1f));
    }
    // The first steps were far too fine, and slots shrink by half at most.
    if (step != 1) {
      EXPECT_NEAR(slots, 2, 1e-6) << "messages have the bits of the spec";
    }
  }
  // (1000 (3 − s) + 3000 (0.5 − s)) / 4000 = 2
  EXPECT_NEAR(std::log2(last[0]), 1.125 - 2, 0.02);
}

// Gradients that cancel: what the ranks find by their own is far too coarse for the mean.
TEST(SharedSteps, TheStepOfMeansThatAreSmallIsFoundByFollowing) {
  SharedSteps steps;
  const auto taken = [](double at_one, float step) {
    return std::max(0.01, at_one - std::log2(double{step}));
  };
  for (int step = 0; step < 12; ++step) {
    const auto use = steps.use(kSpec, bits(2), "a", 1000, step);
    // Two bits with a step of 1, of the mean with one of a sixteenth.
    const float found = 1;
    const float own = use.step[kToOwners] > 0 ? use.step[kToOwners] : found;
    const float mean = use.step[kToAll] > 0 ? use.step[kToAll] : found;
    if (step > 0) {
      EXPECT_GT(use.step[kToAll], 0) << "step " << step;
      EXPECT_GT(use.slot_bits[kToAll], 1) << "what was sent with another step tells no size";
    }
    steps.report(kSpec, "a",
                 {.bits = {taken(2, own), taken(-2, mean)}, .log2_step = std::log2(own)});
  }
  EXPECT_NEAR(std::log2(steps.use(kSpec, bits(2), "a", 1000, 12).step[kToAll]), -4, 0.1);
}

// In a job of one rank the mean is what the rank's own step has made of its gradient.
TEST(SharedSteps, MeansThatLoseNothingDoNotMakeTheirStepGrow) {
  SharedSteps steps;
  const EcsqOptions error = {.goal = EcsqOptions::Goal::kError, .value = 0.05};
  for (int step = 0; step < 3; ++step) {
    steps.use("ecsq(error=0.05)", error, "a", 1000, step);
    steps.report("ecsq(error=0.05)", "a",
                 {.bits = {3, 3}, .log2_step = 0, .lost = {1, 0}, .allowed = {1, 1}});
  }
  const auto use = steps.use("ecsq(error=0.05)", error, "a", 1000, 3);
  EXPECT_NEAR(use.step[kToOwners], 1, 1e-6);
  EXPECT_EQ(use.step[kToAll], 0) << "is found anew";
}

TEST(SharedSteps, AStepThatIsFarOffIsForgotten) {
  SharedSteps steps;
  const Source source{"a", 1000, 3};
  steps.use(kSpec, bits(2), "a", 1000, 0);
  steps.report(kSpec, "a", source.report(1));
  EXPECT_GT(steps.use(kSpec, bits(2), "a", 1000, 1).step[0], 0);
  // Gradients are a thousandth of what they were.
  steps.report(kSpec, "a", {.bits = {0.01, 0.01}, .log2_step = 0.0});
  const auto use = steps.use(kSpec, bits(2), "a", 1000, 2);
  EXPECT_EQ(use.step[0], 0);
  EXPECT_NEAR(use.slot_bits[0], 2, 1e-9);
}

TEST(SharedSteps, ASkippedStepChangesNothing) {
  SharedSteps steps;
  const Source source{"a", 1000, 3};
  steps.use(kSpec, bits(2), "a", 1000, 0);
  steps.report(kSpec, "a", source.report(1));
  steps.use(kSpec, bits(2), "a", 1000, 1);
  const auto state = steps.state();
  steps.use(kSpec, bits(2), "a", 1000, 2);  // the means of 1 were not finite
  EXPECT_TRUE(steps.state() == state);
}

TEST(SharedSteps, GroupsThatComeNoMoreAreDropped) {
  SharedSteps steps;
  const Source source{"a", 1000, 3};
  for (const char* name : {"a", "b"}) {
    steps.use(kSpec, bits(2), name, 1000, 0);
    steps.report(kSpec, name, source.report(1));
  }
  steps.use(kSpec, bits(2), "a", 1000, 1);
  steps.report(kSpec, "a", source.report(1));
  steps.use(kSpec, bits(2), "a", 1000, 2);
  steps.report(kSpec, "a", source.report(1));
  EXPECT_EQ(steps.state().at(kSpec).groups.size(), 1u);
}

TEST(SharedSteps, TheDescriptionTellsStatesApart) {
  SharedSteps a, b;
  EXPECT_EQ(describe(a.state()), "");
  const Source source{"a", 1000, 3};
  for (SharedSteps* steps : {&a, &b}) {
    steps->use(kSpec, bits(2), "a", 1000, 0);
    steps->report(kSpec, "a", source.report(1));
  }
  EXPECT_EQ(describe(a.state()), describe(b.state()));
  b.use(kSpec, bits(2), "a", 1000, 1);
  b.report(kSpec, "a", source.report(1));
  EXPECT_NE(describe(a.state()), describe(b.state()));
}

TEST(SharedSteps, ErrorsMoveTheStepToo) {
  SharedSteps steps;
  const EcsqOptions options{.goal = EcsqOptions::Goal::kError, .value = 0.1};
  steps.use("ecsq(error=0.1)", options, "a", 1000, 0);
  steps.report("ecsq(error=0.1)", "a",
               {.bits = {3, 2}, .log2_step = 0.0, .lost = {2, 1}, .allowed = {1, 2}});
  const auto use = steps.use("ecsq(error=0.1)", options, "a", 1000, 1);
  EXPECT_LT(use.step[kToOwners], 1);
  EXPECT_GT(use.step[kToAll], 1);
  EXPECT_NEAR(use.slot_bits[kToOwners], 3 * 1.03, 1e-9);
}

// Reverse water-filling lets what is small lose all of itself: that is no reason for a finer step.
TEST(SharedSteps, TheErrorIsThatOfAllTogether) {
  SharedSteps steps;
  const EcsqOptions options{.goal = EcsqOptions::Goal::kError, .value = 0.1};
  const auto use_both = [&](int step) {
    steps.use("ecsq(error=0.1)", options, "large", 1000, step);
    return steps.use("ecsq(error=0.1)", options, "small", 1000, step);
  };
  use_both(0);
  steps.report("ecsq(error=0.1)", "large",
               {.bits = {3, 3}, .log2_step = 0.0, .lost = {1, 1}, .allowed = {1, 1}});
  steps.report(
      "ecsq(error=0.1)", "small",
      {.bits = {0.1, 0.1}, .log2_step = 0.0, .lost = {1e-4, 1e-4}, .allowed = {1e-6, 1e-6}});
  const auto use = use_both(1);
  EXPECT_NEAR(use.step[kToOwners], 1, 1e-3);
  EXPECT_NEAR(use.slot_bits[kToOwners], 0.103, 1e-3);
}

}  // namespace
}  // namespace thinwire::comm
