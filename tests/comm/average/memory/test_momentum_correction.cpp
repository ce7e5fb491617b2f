#include <gtest/gtest.h>

#include "thinwire/comm/average/memory/momentum_correction.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using Values = std::vector<float>;

TEST(MomentumCorrection, AccumulatesVelocityAndMasksWhatWasSent) {
  MomentumCorrection correction({.momentum = 0.5});
  Values v = {4, 1};
  correction.correct("w", v);
  EXPECT_EQ(v, (Values{4, 1}));
  correction.commit("w", v, Values{4, 0});
  EXPECT_EQ(correction.state().at("w").velocity, (Values{0, 1}));
  EXPECT_EQ(correction.state().at("w").residual, (Values{0, 1}));
  v = {2, 2};
  correction.correct("w", v);
  EXPECT_EQ(v, (Values{2, 3.5f}));  // velocities 2 and 0.5 + 2, residuals 0 and 1
}

TEST(MomentumCorrection, WhatWasOwedBesidesIsNotTakenForSent) {
  MomentumCorrection correction({.momentum = 0.5});
  Values v = {4, 1};
  correction.correct("w", v);
  v = {5, 3};
  correction.set_corrected("w", v);
  correction.commit("w", Values{0, 3});
  EXPECT_EQ(correction.state().at("w").velocity, (Values{0, 1}));
  EXPECT_THROW(correction.set_corrected("w", v), InvalidArgument);
}

TEST(MomentumCorrection, SentEverythingEqualsHeavyBallUntilMasked) {
  // Nothing sent for three steps, then all: the sum is that of momentum's updates.
  MomentumCorrection correction({.momentum = 0.5});
  Values v;
  float velocity = 0, sum = 0;
  for (int step = 0; step < 4; ++step) {
    v = {1};
    velocity = 0.5f * velocity + 1;
    sum += velocity;
    correction.correct("w", v);
    if (step < 3) correction.commit("w", v, Values{0});
  }
  EXPECT_EQ(v[0], sum);
}

TEST(MomentumCorrection, StepThatIsNotCommittedLeavesNoTrace) {
  MomentumCorrection correction;
  Values v = {1, 2};
  correction.correct("w", v);
  correction.commit("w", v, Values{1, 0});
  const auto before = correction.state();
  Values bad = {1e30f, 7};
  correction.correct("w", bad);
  EXPECT_EQ(correction.state(), before);
  Values once = {3, 3}, twice = {3, 3};
  correction.correct("w", once);
  correction.correct("w", twice);
  EXPECT_EQ(once, twice);
}

TEST(MomentumCorrection, NesterovLooksOneStepAhead) {
  MomentumCorrection correction({.momentum = 0.5, .nesterov = true});
  Values v = {2};
  correction.correct("w", v);
  EXPECT_EQ(v, (Values{3}));
}

TEST(MomentumCorrection, RefusesMisuse) {
  EXPECT_THROW(MomentumCorrection({.momentum = 1.0}), InvalidArgument);
  MomentumCorrection correction;
  Values v = {1, 2};
  EXPECT_THROW(correction.commit("w", v, v), InvalidArgument);
  correction.correct("w", v);
  EXPECT_THROW(correction.commit("w", v, Values{1}), InvalidArgument);
  correction.commit("w", v, v);
  EXPECT_THROW(correction.commit("w", v, v), InvalidArgument);
  Values longer = {1, 2, 3};
  EXPECT_THROW(correction.correct("w", longer), InvalidArgument);
  EXPECT_THROW(correction.load_state({{"w", {{1, 2}, {1}}}}), InvalidArgument);
}

TEST(WarmupDensity, FallsByTheSameFactorEachEpoch) {
  EXPECT_DOUBLE_EQ(warmup_density(0.001, 0, 4), 0.25);
  EXPECT_NEAR(warmup_density(0.001, 1, 4), 0.0629, 1e-4);
  EXPECT_NEAR(warmup_density(0.001, 3, 4), 0.00398, 1e-5);
  EXPECT_DOUBLE_EQ(warmup_density(0.001, 4, 4), 0.001);
  EXPECT_DOUBLE_EQ(warmup_density(0.5, 0, 4), 0.5);
  EXPECT_DOUBLE_EQ(warmup_density(0.01, 0, 0), 0.01);
  EXPECT_THROW(warmup_density(0, 0, 4), InvalidArgument);
  EXPECT_THROW(warmup_density(0.1, -1, 4), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
