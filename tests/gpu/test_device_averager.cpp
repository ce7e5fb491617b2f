// BucketAverager on CUDA tensors over NCCL, on fake devices: every mean, residual and saved state
// has the bits of the averager on the CPU over Gloo, under every schedule; nothing races, and a
// steady step waits for nothing and allocates nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/device_averaging.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;
using testing::LayerShapes;

const LayerShapes kShapes = {{"wide", {3, 500}}, {"cast", {315}},      {"bias", {40}},
                             {"eight", {700}},   {"random", {2, 400}}, {"five", {200}},
                             {"half", {130}},    {"sign", {2, 161}},   {"tern", {200}}};

Plan mixed_plan() {
  Plan plan;
  const auto set = [&](const char* name, const char* spec) {
    plan.set(name, parse_layer_setting(spec));
  };
  set("wide", "quantize(bits=4, bucket=512)");
  set("cast", "cast(format=bf16)");
  set("eight", "cast(format=fp8_e4m3, residual_decay=0.5)");
  set("random", "quantize(bits=3, bucket=512, norm=l2, rounding=stochastic)");
  set("five", "cast(format=fp8_e5m2, residual_reset=3)");
  set("sign", "onebit(bucket=128)");
  set("tern", "terngrad(bucket=128, clip=2)");
  set("half", "cast(format=fp16, error_feedback=on, second_residual=off)");
  return plan;
}

class DeviceAveragerTest : public testing::DeviceAveraging {
 protected:
  DeviceAveragerTest() {
    shapes = kShapes;
    plan = mixed_plan();
  }
};
INSTANTIATE_TEST_SUITE_P(, DeviceAveragerTest,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceAveragerTest, MeansAndResidualsHaveTheBitsOfTheCpu) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    // What goes as it is in a narrow type is the backend's own all_reduce, whose order of adding is
    // its own.
    if (dtype != at::kFloat && ranks.size > 2) plan.set("bias", parse_layer_setting("cast"));
    make();
    for (std::int64_t step = 0; step < 4; ++step) {
      Bucket bucket = bucket_of(step, dtype);
      if (step == 1 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
      average(bucket, step);
    }
    EXPECT_TRUE(device->state() == cpu->state()) << toString(dtype);
  }
}

TEST_P(DeviceAveragerTest, WhatAnotherLayoutLeavesOwedIsPaidBack) {
  make();
  average(bucket_of(0, at::kFloat), 0);
  // Other owners: what they hold of others' slices is theirs no longer.
  shapes = {kShapes[4], kShapes[0], kShapes[2]};
  average(bucket_of(1, at::kFloat), 1);
  shapes = {kShapes[1], kShapes[3], kShapes[5], kShapes[6]};
  average(bucket_of(2, at::kFloat), 1);
  EXPECT_TRUE(device->state() == cpu->state());
  // A layer that goes uncompressed gets its residual back, in a bucket with others and without.
  shapes = {kShapes[4], kShapes[0], kShapes[2]};
  plan.set("wide", parse_layer_setting("none"));
  average(bucket_of(3, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
  if (ranks.size == 2) {
    shapes = {kShapes[3], kShapes[5]};
    plan = Plan();
    average(bucket_of(4, at::kFloat), 3);
    EXPECT_TRUE(device->state() == cpu->state());
  }
}

TEST_P(DeviceAveragerTest, AStateGoesOnOnTheOtherSide) {
  make();
  for (std::int64_t step = 0; step < 2; ++step) average(bucket_of(step, at::kFloat), step);
  const AveragerState of_device = device->state(), of_cpu = cpu->state();
  make();
  device->load_state(of_cpu);
  cpu->load_state(of_device);
  for (std::int64_t step = 2; step < 4; ++step) average(bucket_of(step, at::kFloat), step);
  device->load_state(of_device);
  cpu->load_state(of_cpu);
  average(bucket_of(9, at::kFloat), 2);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceAveragerTest, ASteadyStepWaitsForNothingAndAllocatesNothing) {
  make();
  for (std::int64_t step = 0; step < 3; ++step) counters_of_step(step);
  const auto counted = counters_of_step(3);
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.allocations, 0u);
  const std::uint64_t chunks = 2;  // of 14 KB
  EXPECT_EQ(counted.launches, 3 * chunks + 3 * chunks + 3);
  // Verdicts.
  EXPECT_EQ(counted.to_host, 1u);
  EXPECT_EQ(counted.to_device, 0u);
}

TEST_P(DeviceAveragerTest, WhatHasNoKernelsIsRefusedByName) {
  make();
  Bucket bucket = bucket_of(0, at::kFloat);
  bucket.buffer = bucket.buffer.to(ranks.device());
  plan.set("wide", parse_layer_setting("spectral"));
  EXPECT_THAT(
      testing::error_of<InvalidArgument>([&] { device->average(bucket, plan, 0); }),
      AllOf(HasSubstr("layer 'wide' is in GPU memory"), HasSubstr("spectral"),
            HasSubstr("quantize, cast, onebit, terngrad, randomk, powersgd(factors=fp32, bf16, "
                      "int8 or int4), topk")));
}

}  // namespace
}  // namespace thinwire::comm
