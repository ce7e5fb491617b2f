// Layers of ecsq on CUDA tensors over NCCL, on fake devices: every mean, residual, step and saved
// state has the bits of the averager on the CPU over Gloo, under every schedule, and nothing races.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/device_averaging.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::LayerShapes;

const LayerShapes kShapes = {{"a", {30, 41}}, {"b", {3}},    {"c", {2100}},  {"plain", {50}},
                             {"d", {700}},    {"e", {1100}}, {"step", {900}}};

Plan slots_plan() {
  Plan plan;
  const auto set = [&](const char* name, const char* spec) {
    plan.set(name, parse_layer_setting(spec));
  };
  set("a", "ecsq(bits=2)");
  set("b", "ecsq(bits=2)");
  set("c", "ecsq(bits=2, residual_decay=0.5)");
  set("d", "quantize(bits=4, bucket=128)");
  set("e", "ecsq(bits=2, error_feedback=off)");
  set("step", "ecsq(step=0.25, residual_reset=3)");
  return plan;
}

class DeviceSlotsTest : public testing::DeviceAveraging {
 protected:
  DeviceSlotsTest() {
    shapes = kShapes;
    plan = slots_plan();
    chunk_bytes = 5000;  // of two ranks the larger group has two chunks
  }
};
INSTANTIATE_TEST_SUITE_P(, DeviceSlotsTest,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceSlotsTest, MeansAndStatesHaveTheBitsOfTheCpu) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    if (dtype != at::kFloat && ranks.size > 2) plan.set("plain", parse_layer_setting("cast"));
    make();
    for (std::int64_t step = 0; step < (dtype == at::kFloat ? 4 : 2); ++step) {
      Bucket bucket = bucket_of(step, dtype);
      if (step == 2 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
      average(bucket, step);
    }
    EXPECT_TRUE(device->state() == cpu->state()) << toString(dtype);
  }
}

// Gradients that grow and shrink by far: steps are found anew, slots overflow, and all of a step is
// zero. The ranks' own are of other sizes, so that each finds other steps that fit than the shared
// one, from where the next chunk begins.
TEST_P(DeviceSlotsTest, StepsFollowTheGradients) {
  make();
  std::int64_t step = 0;
  for (const float scale : {1.0f, 30.0f, 1e-3f, 0.0f}) {
    Bucket bucket = bucket_of(step, at::kFloat);
    bucket.buffer.mul_(scale * static_cast<float>(1 + 2 * ranks.rank));
    average(bucket, step++);
    EXPECT_TRUE(device->state().shared_steps == cpu->state().shared_steps) << "after " << scale;
  }
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceSlotsTest, AStateGoesOnOnTheOtherSide) {
  make();
  for (std::int64_t step = 0; step < 2; ++step) average(bucket_of(step, at::kFloat), step);
  const AveragerState of_device = device->state(), of_cpu = cpu->state();
  EXPECT_FALSE(of_device.shared_steps.empty());
  make();
  device->load_state(of_cpu);
  cpu->load_state(of_device);
  for (std::int64_t step = 2; step < 4; ++step) average(bucket_of(step, at::kFloat), step);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceSlotsTest, WhatAnotherLayoutLeavesOwedIsPaidBack) {
  make();
  average(bucket_of(0, at::kFloat), 0);
  shapes = {kShapes[2], kShapes[0]};
  average(bucket_of(1, at::kFloat), 1);
  shapes = {kShapes[1], kShapes[3], kShapes[6]};
  average(bucket_of(2, at::kFloat), 1);
  EXPECT_TRUE(device->state() == cpu->state());
  shapes = {kShapes[2], kShapes[0]};
  plan.set("c", parse_layer_setting("quantize(bits=4, bucket=128)"));
  average(bucket_of(3, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

// Of slots that are large enough to be sampled.
TEST_P(DeviceSlotsTest, LargeSlotsHaveTheBitsOfTheCpu) {
  shapes = {{"a", {66000 * ranks.size}}};
  chunk_bytes = std::size_t{4} << 20;
  make();
  average(bucket_of(0, at::kFloat), 0);
  EXPECT_TRUE(device->state() == cpu->state());
}

// The host waits for the end of the step before, of which it has to know what its slots took: where
// that has ended it waits for nothing.
TEST_P(DeviceSlotsTest, ASteadyStepWaitsForNothingAndAllocatesNothing) {
  shapes = {{"a", {30, 41}}, {"c", {2100}}};
  chunk_bytes = std::size_t{4} << 20;
  make();
  average(bucket_of(0, at::kFloat), 0);
  for (std::int64_t step = 1; step < 3; ++step) counters_of_step(step);
  const auto counted = counters_of_step(3);
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.allocations, 0u);
  EXPECT_EQ(counted.launches, 17u);
  // Verdicts and a report; a table.
  EXPECT_EQ(counted.to_host, 2u);
  EXPECT_EQ(counted.to_device, 1u);
}

TEST_P(DeviceSlotsTest, OtherGoalsAreRefusedByName) {
  make();
  for (const char* spec : {"ecsq(error=0.1)", "ecsq(as=quantize(bits=4))", "spectral(bits=2)"}) {
    Bucket bucket = bucket_of(0, at::kFloat);
    bucket.buffer = bucket.buffer.to(ranks.device());
    plan.set("a", parse_layer_setting(spec));
    EXPECT_THAT(testing::error_of<InvalidArgument>([&] { device->average(bucket, plan, 0); }),
                AllOf(HasSubstr("layer 'a' is in GPU memory"), HasSubstr("ecsq(bits or step)")));
  }
}

}  // namespace
}  // namespace thinwire::comm
