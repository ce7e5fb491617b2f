#include "thinwire/comm/predict/step_model.h"

#include <gtest/gtest.h>

namespace thinwire::comm {
namespace {

using Kind = ExchangeOp::Kind;

ExchangeOp code(double seconds) {
  return {.kind = Kind::kCode, .seconds = seconds};
}
ExchangeOp post(int message, double seconds, double bytes = 0, double per_byte = 0) {
  return {.kind = Kind::kPost,
          .seconds = seconds,
          .message = message,
          .bytes = bytes,
          .per_byte = per_byte};
}
ExchangeOp wait(int message) {
  return {.kind = Kind::kWait, .message = message};
}

PredictedBucket all_reduce(double ready, double seconds) {
  return {.ready = ready, .ops = {.begin = {post(0, seconds)}, .finish = {wait(0)}}};
}

TEST(StepModel, WithoutAnExchangeAStepIsItsComputing) {
  const auto step = predict_step({.forward = 1, .backward = 2, .rest = 0.5});
  EXPECT_DOUBLE_EQ(step.step, 3.5);
  EXPECT_DOUBLE_EQ(step.backward, 2);
  EXPECT_DOUBLE_EQ(step.exposed, 0);
}

TEST(StepModel, WhatArrivesBeforeTheBackwardPassEndsIsHidden) {
  const auto hidden = predict_step({.forward = 1, .backward = 4, .buckets = {all_reduce(1, 2)}});
  EXPECT_DOUBLE_EQ(hidden.step, 5);
  EXPECT_DOUBLE_EQ(hidden.exposed, 0);
  EXPECT_DOUBLE_EQ(hidden.network, 2);
  const auto late = predict_step({.forward = 1, .backward = 4, .buckets = {all_reduce(3, 2)}});
  EXPECT_DOUBLE_EQ(late.step, 6);
  EXPECT_DOUBLE_EQ(late.exposed, 1);
}

TEST(StepModel, MessagesFollowEachOtherOnTheLink) {
  const auto step =
      predict_step({.backward = 4,
                    .rest = 1,
                    .buckets = {all_reduce(1, 3), all_reduce(2, 3), all_reduce(4, 3)}});
  EXPECT_DOUBLE_EQ(step.exposed, 6);
  EXPECT_DOUBLE_EQ(step.step, 11);
}

TEST(StepModel, CodingTakesFromTheTrainingOnOneProcessorOnly) {
  StepWork work{.backward = 4, .buckets = {{.ready = 1, .ops = {.begin = {code(2)}}}}};
  work.cores = 2;
  EXPECT_DOUBLE_EQ(predict_step(work).step, 4);
  work.cores = 1;
  // Both at half speed for 4 seconds, from 1 on; the training has one second left then.
  const auto shared = predict_step(work);
  EXPECT_DOUBLE_EQ(shared.step, 6);
  EXPECT_DOUBLE_EQ(shared.coding, 2);
}

TEST(StepModel, ABucketIsFinishedWhileTheNextOnesMessageTravels) {
  const ExchangeOps ops = {.begin = {code(1), post(0, 4)}, .finish = {wait(0), code(1)}};
  // Both are ready at once: code, code, decode the first while the second travels.
  const auto step = predict_step({.backward = 0, .cores = 2, .buckets = {{0, ops}, {0, ops}}});
  // 1 to 5 the first message, 5 to 9 the second, then its decoding.
  EXPECT_DOUBLE_EQ(step.step, 10);
}

TEST(StepModel, AnIdleThreadFinishesWhatItHas) {
  // The next bucket comes long after the first message has arrived.
  const ExchangeOps ops = {.begin = {post(0, 1)}, .finish = {wait(0), code(2)}};
  const auto step = predict_step({.backward = 10, .cores = 2, .buckets = {{1, ops}, {10, ops}}});
  EXPECT_DOUBLE_EQ(step.exposed, 3);
}

TEST(StepModel, ABurstPassesAtOnce) {
  StepWork work{
      .backward = 1,
      .buckets = {{.ready = 1, .ops = {.begin = {post(0, 0, 100, 0.1)}, .finish = {wait(0)}}}}};
  EXPECT_DOUBLE_EQ(predict_step(work).exposed, 10);
  // A step gets back what a second of rest lets in, at most all of it.
  work.burst_bytes = 40;
  EXPECT_DOUBLE_EQ(predict_step(work).exposed, 10);
  work.burst_refill = 10;
  EXPECT_DOUBLE_EQ(predict_step(work).exposed, 9);
  work.rest = 2;
  EXPECT_DOUBLE_EQ(predict_step(work).exposed, 7);
  work.rest = 20;
  EXPECT_DOUBLE_EQ(predict_step(work).exposed, 6);
  EXPECT_DOUBLE_EQ(predict_step(work).sent_bytes, 100);
}

}  // namespace
}  // namespace thinwire::comm
