// topk, ternary and randomk on CUDA tensors over NCCL, on fake devices: means, residuals,
// velocities and saved states have the bits of the averager on the CPU over Gloo.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/device_averaging.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;

class DeviceSparseTest : public testing::DeviceAveraging {
 protected:
  DeviceSparseTest() {
    shapes = {{"wide", {3, 900}}, {"half", {10, 61}},  {"signs", {4, 130}},
              {"few", {7}},       {"swift", {2, 150}}, {"ahead", {333}}};
    set("wide", "topk(density=0.03)");
    set("half", "topk(density=0.2, values=fp16, residual_decay=0.5, residual_reset=3)");
    set("signs", "ternary(density=0.55)");
    set("few", "topk(density=0.5, values=bf16, error_feedback=off)");
    set("swift", "topk(density=0.1, values=fp16, momentum=0.9)");
    set("ahead", "ternary(density=0.05, momentum=0.8, nesterov=on)");
  }
  void set(const char* name, const char* spec) { plan.set(name, parse_layer_setting(spec)); }
  // The CPU would let owners of ranges add the entries of three ranks or more.
  void make_gathering() { make({.strategy = Strategy::kGatherReduce}); }
};
INSTANTIATE_TEST_SUITE_P(, DeviceSparseTest,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);
// One schedule is enough for what the same kernels do with other tables.
class DeviceSparseLazyTest : public DeviceSparseTest {};
INSTANTIATE_TEST_SUITE_P(, DeviceSparseLazyTest, ::testing::Values(fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceSparseTest, MeansAndResidualsHaveTheBitsOfTheCpu) {
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) {
    make_gathering();
    for (std::int64_t step = 0; step < 4; ++step) {
      Bucket bucket = bucket_of(step, dtype);
      // Many of equal magnitude, of which the first count.
      bucket.buffer.narrow(0, 100, 1200).mul_(2).round_();
      if (step == 1 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
      if (step == 2 && ranks.rank == 0) bucket.buffer.narrow(0, 0, 1300).fill_(HUGE_VALF);
      average(bucket, step);
    }
    EXPECT_TRUE(device->state() == cpu->state()) << toString(dtype);
  }
}

TEST_P(DeviceSparseLazyTest, LayersOfBothKindsAreKeptOrLeftTogether) {
  set("wide", "quantize(bits=4, bucket=512)");
  set("half", "none");
  if (ranks.size > 2) {
    set("signs", "cast");
    set("ahead", "onebit");
    set("few", "cast");
    set("swift", "none");
  }
  make();
  for (std::int64_t step = 0; step < 5; ++step) {
    Bucket bucket = bucket_of(step, at::kFloat);
    if (step == 1 && ranks.rank == 1) bucket.buffer[3] = std::nanf("");
    if (step == 2 && ranks.rank == 0) bucket.buffer[bucket.layers[2].offset] = std::nanf("");
    average(bucket, step);
  }
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceSparseLazyTest, EntriesThatAllDrawAlikeHaveTheBitsOfTheCpu) {
  set("wide", "randomk(density=0.03)");
  set("half", "randomk(density=0.3, unbiased=on)");
  set("signs", "randomk(density=0.7, residual_decay=0.5)");
  set("few", "randomk(density=0.1, unbiased=on, error_feedback=on)");
  set("swift", "randomk(density=0.1, momentum=0.9)");
  set("ahead", "quantize(bits=4, bucket=64)");
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    make();
    for (std::int64_t step = 0; step < 4; ++step) {
      Bucket bucket = bucket_of(step, dtype);
      if (step == 1 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
      if (step == 2 && ranks.rank == 0) bucket.buffer[100] = 1e38f;
      average(bucket, step);
    }
    EXPECT_TRUE(device->state() == cpu->state()) << toString(dtype);
  }
}

TEST_P(DeviceSparseLazyTest, WhatAnotherPlanLeavesOwedIsPaidBack) {
  if (ranks.size > 2) return;  // by other strategies there on the CPU
  make();
  average(bucket_of(0, at::kFloat), 0);
  set("swift", "topk(density=0.1)");
  set("ahead", "quantize(bits=2, bucket=64)");
  set("wide", "topk(density=0.1, momentum=0.5)");
  set("half", "none");
  average(bucket_of(1, at::kFloat), 1);
  EXPECT_TRUE(device->state() == cpu->state());
  set("wide", "none");
  set("ahead", "topk(density=0.2)");
  average(bucket_of(2, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceSparseLazyTest, AStateGoesOnOnTheOtherSide) {
  make_gathering();
  for (std::int64_t step = 0; step < 2; ++step) average(bucket_of(step, at::kFloat), step);
  const AveragerState of_device = device->state(), of_cpu = cpu->state();
  make_gathering();
  device->load_state(of_cpu);
  cpu->load_state(of_device);
  average(bucket_of(2, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceSparseLazyTest, WhatStepsHaveChangedIsTakenBack) {
  shapes = {shapes[1], shapes[3], shapes[4], shapes[5]};
  if (ranks.size == 2) {
    set("few", "quantize(bits=4, bucket=8)");
    make();
  } else {
    make_gathering();
  }
  const auto on_both = [&](const auto& action) {
    for (BucketAverager* averager : {device.get(), cpu.get()}) action(*averager);
  };
  const auto state_of_both = [&] {
    EXPECT_TRUE(device->state() == cpu->state());
    return device->state();
  };
  // From the very first step on, before there is anything in GPU memory.
  on_both([](BucketAverager& averager) { averager.mark(); });
  average(bucket_of(0, at::kFloat), 0);
  on_both([](BucketAverager& averager) { averager.undo(); });
  EXPECT_TRUE(state_of_both() == AveragerState());
  average(bucket_of(0, at::kFloat), 0);
  const AveragerState before = state_of_both();
  on_both([](BucketAverager& averager) { averager.mark(); });
  for (std::int64_t step = 1; step < 3; ++step) average(bucket_of(step, at::kFloat), step);
  const AveragerState after = state_of_both();
  EXPECT_FALSE(before == after);
  on_both([](BucketAverager& averager) { averager.undo(); });
  EXPECT_TRUE(state_of_both() == before);
  for (std::int64_t step = 1; step < 3; ++step) average(bucket_of(step, at::kFloat), step);
  EXPECT_TRUE(state_of_both() == after);
}

TEST_P(DeviceSparseLazyTest, ASteadyStepWaitsForNothingAndAllocatesNothing) {
  make_gathering();
  for (std::int64_t step = 0; step < 3; ++step) counters_of_step(step);
  const auto counted = counters_of_step(3);
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.allocations, 0u);
  // Choosing, gathering and packing; sums and frames of what leaves and of what comes; decoding.
  EXPECT_EQ(counted.launches, 11u + 4 + 2);
  EXPECT_EQ(counted.to_host, 1u);
  EXPECT_EQ(counted.to_device, 0u);
}

TEST_P(DeviceSparseLazyTest, OtherStrategiesAndSettingsAreRefusedByName) {
  make({.strategy = Strategy::kSparse});
  Bucket bucket = bucket_of(0, at::kFloat);
  bucket.buffer = bucket.buffer.to(ranks.device());
  const auto refusal = [&] {
    return testing::error_of<InvalidArgument>([&] { device->average(bucket, plan, 0); });
  };
  EXPECT_THAT(refusal(), HasSubstr("is averaged by gather_reduce alone: strategy sparse"));
  set("wide", "topk(density=0.03, values=coded)");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("layer 'wide' is in GPU memory"),
                               HasSubstr("topk(select=exact, values=fp32, fp16 or bf16)")));
}

}  // namespace
}  // namespace thinwire::comm
