// powersgd on CUDA tensors over NCCL, on fake devices: means, residuals, warm starts and saved
// states have the bits of the averager on the CPU over Gloo.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/device_averaging.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;

class DeviceLowRankTest : public testing::DeviceAveraging {
 protected:
  // "flat" and "thin" travel as they are, one because it has no columns, one because its factors
  // would be larger.
  DeviceLowRankTest() {
    shapes = {{"wide", {37, 70}}, {"flat", {45}}, {"kernel", {24, 3, 3, 3}}, {"tall", {130, 9}},
              {"thin", {5, 3}},   {"bias", {20}}, {"coded", {40, 50}},       {"coarse", {65, 33}}};
    set("wide", "powersgd(rank=3)");
    set("flat", "powersgd(rank=2, residual_decay=0.5)");
    set("kernel", "powersgd(rank=9, residual_decay=0.5, residual_reset=3)");
    set("tall", "powersgd(rank=2, error_feedback=off)");
    set("thin", "powersgd(rank=2, factors=int8)");
    set("coded", "powersgd(rank=4, factors=int8)");
    set("coarse", "powersgd(rank=2, factors=int4)");
  }
  void set(const char* name, const char* spec) { plan.set(name, parse_layer_setting(spec)); }
};
INSTANTIATE_TEST_SUITE_P(, DeviceLowRankTest,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);
// One schedule is enough for what the same kernels do with other tables.
class DeviceLowRankLazyTest : public DeviceLowRankTest {};
INSTANTIATE_TEST_SUITE_P(, DeviceLowRankLazyTest, ::testing::Values(fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceLowRankTest, MeansResidualsAndWarmStartsHaveTheBitsOfTheCpu) {
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) {
    // As in test_device_averager.cpp.
    if (dtype != at::kFloat && ranks.size > 2) set("bias", "cast");
    make();
    for (std::int64_t step = 0; step < (dtype == at::kFloat ? 4 : 2); ++step) {
      Bucket bucket = bucket_of(step, dtype);
      if (step == 1 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
      // A matrix of which nothing is left but one column.
      if (step == 2) bucket.buffer.narrow(0, bucket.layers[3].offset, 130 * 9).fill_(0.5);
      average(bucket, step);
      EXPECT_TRUE(device->state() == cpu->state()) << toString(dtype) << " step " << step;
    }
  }
}

TEST_P(DeviceLowRankLazyTest, MoreRoundsAndOtherCodecsBesideHaveTheBitsOfTheCpu) {
  set("wide", "powersgd(rank=3, iterations=2)");
  set("coded", "powersgd(rank=2, iterations=2, factors=bf16)");
  set("coarse", "powersgd(rank=2, iterations=3, factors=int8)");
  set("flat", "quantize(bits=4, bucket=64)");
  if (ranks.size == 2) set("kernel", "topk(density=0.1)");
  make();
  for (std::int64_t step = 0; step < 3; ++step) {
    Bucket bucket = bucket_of(step, at::kFloat);
    if (step == 1 && ranks.rank == 1) bucket.buffer[bucket.layers[1].offset] = HUGE_VALF;
    average(bucket, step);
    EXPECT_TRUE(device->state() == cpu->state()) << "step " << step;
  }
}

TEST_P(DeviceLowRankLazyTest, AMeanThatOverflowsOnlyInTheProductOfItsFactorsChangesNothing) {
  make();
  average(bucket_of(0, at::kFloat), 0);
  Bucket bucket = bucket_of(1, at::kFloat);
  bucket.buffer.narrow(0, 0, 37 * 70).mul_(1e37f);
  average(bucket, 1);
  EXPECT_TRUE(device->state() == cpu->state());
  average(bucket_of(2, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceLowRankLazyTest, WhatAnotherPlanLeavesOwedIsPaidBackAndRanksChange) {
  make();
  set("coarse", "quantize(bits=2, bucket=64)");
  set("bias", "quantize(bits=4, bucket=64)");
  average(bucket_of(0, at::kFloat), 0);
  set("coarse", "powersgd(rank=3)");
  set("wide", "powersgd(rank=5)");
  set("coded", "powersgd(rank=2)");
  set("bias", "none");
  average(bucket_of(1, at::kFloat), 1);
  EXPECT_TRUE(device->state() == cpu->state());
  set("coded", "powersgd(rank=3)");
  set("wide", "none");
  average(bucket_of(2, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceLowRankLazyTest, AStateGoesOnOnTheOtherSideAndAStepIsTakenBack) {
  if (ranks.size == 2) set("kernel", "topk(density=0.1, momentum=0.9)");
  make();
  average(bucket_of(0, at::kFloat), 0);
  const AveragerState of_device = device->state(), of_cpu = cpu->state();
  make();
  device->load_state(of_cpu);
  cpu->load_state(of_device);
  average(bucket_of(1, at::kFloat), 1);
  EXPECT_TRUE(device->state() == cpu->state());
  const AveragerState before = device->state();
  device->mark();
  cpu->mark();
  average(bucket_of(2, at::kFloat), 2);
  EXPECT_FALSE(device->state() == before);
  device->undo();
  cpu->undo();
  EXPECT_TRUE(device->state() == before);
  average(bucket_of(3, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceLowRankLazyTest, ASteadyStepWaitsForNothingAndAllocatesNothing) {
  chunk_bytes = 1 << 20;
  make();
  for (std::int64_t step = 0; step < 3; ++step) counters_of_step(step);
  const auto counted = counters_of_step(3);
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.allocations, 0u);
  // Start, P, its mean; orthonormal, Q, its mean; what counts as sent; replacing, the next start.
  EXPECT_EQ(counted.launches, 2u + 9 + 2 + 9 + 1 + 2);
  EXPECT_EQ(counted.to_host, 1u);
  EXPECT_EQ(counted.to_device, 0u);
}

TEST_P(DeviceLowRankLazyTest, OtherStrategiesAreRefusedByName) {
  make({.strategy = Strategy::kGatherReduce});
  Bucket bucket = bucket_of(0, at::kFloat);
  bucket.buffer = bucket.buffer.to(ranks.device());
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { device->average(bucket, plan, 0); }),
              HasSubstr("is averaged by low_rank alone: strategy gather_reduce has no kernels"));
}

}  // namespace
}  // namespace thinwire::comm
