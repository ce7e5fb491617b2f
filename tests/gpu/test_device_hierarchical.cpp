// Hierarchical averages of CUDA tensors over NCCL, on fake devices: means, residuals and saved
// states have the bits of those on the CPU over Gloo.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/device_averaging.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;

class DeviceHierarchicalTest : public testing::DeviceAveraging {
 protected:
  DeviceHierarchicalTest() {
    shapes = {{"wide", {3, 200}},   {"cast", {115}}, {"bias", {40}},    {"eight", {260}},
              {"random", {2, 150}}, {"half", {70}},  {"sign", {2, 161}}};
    chunk_bytes = 2500;
    set("wide", "quantize(bits=4, bucket=64)");
    set("cast", "cast(format=bf16)");
    set("eight", "cast(format=fp8_e4m3, residual_decay=0.5)");
    set("random", "quantize(bits=3, bucket=128, norm=l2, rounding=stochastic)");
    set("half", "cast(format=fp16, residual_reset=3, error_feedback=on, second_residual=off)");
    set("sign", "onebit(bucket=64)");
  }
  void set(const char* name, const char* spec) { plan.set(name, parse_layer_setting(spec)); }
  void make_on_hosts(std::vector<int> host_of_rank) {
    make({.strategy = Strategy::kHierarchical, .host_of_rank = std::move(host_of_rank)});
  }
};
INSTANTIATE_TEST_SUITE_P(, DeviceHierarchicalTest,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceHierarchicalTest, MeansAndResidualsHaveTheBitsOfTheCpu) {
  const bool scattered = GetParam() == fake_gpu::Schedule::kLazy;
  make_on_hosts(scattered ? std::vector<int>{0, 1, 0, 1} : std::vector<int>{0, 0, 1, 1});
  for (std::int64_t step = 0; step < 5; ++step) {
    Bucket bucket = bucket_of(step, at::kFloat);
    if (step == 1 && ranks.rank == 1) bucket.buffer[100] = std::nanf("");
    // Too much for float16: that layer's loss is not finite, the others' are kept.
    if (step == 3 && ranks.rank == 2) bucket.buffer[bucket.layers[5].offset] = 1e6f;
    average(bucket, step);
  }
  EXPECT_TRUE(device->state() == cpu->state());
  // Another layout, whose owners are others.
  shapes = {shapes[4], shapes[0], shapes[2]};
  average(bucket_of(5, at::kFloat), 5);
  EXPECT_TRUE(device->state() == cpu->state());
  const AveragerState of_device = device->state();
  device->load_state(cpu->state());
  cpu->load_state(of_device);
  average(bucket_of(6, at::kFloat), 6);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceHierarchicalTest, NarrowGradientsDoSoToo) {
  set("bias", "cast");
  make_on_hosts({0, 0, 1, 1});
  for (std::int64_t step = 0; step < 3; ++step) average(bucket_of(step, at::kBFloat16), step);
  EXPECT_TRUE(device->state() == cpu->state());
}

TEST_P(DeviceHierarchicalTest, ASteadyStepWaitsForNothingAndAllocatesNothing) {
  make_on_hosts({0, 0, 1, 1});
  for (std::int64_t step = 0; step < 3; ++step) counters_of_step(step);
  const auto counted = counters_of_step(3);
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.allocations, 0u);
  const std::uint64_t chunks = 2;
  EXPECT_EQ(counted.launches, 18 * chunks + 4);
  EXPECT_EQ(counted.to_host, 1u);
  EXPECT_EQ(counted.to_device, 0u);
}

TEST_P(DeviceHierarchicalTest, WhatItDoesNotTakeIsRefusedByName) {
  make_on_hosts({0, 0, 1, 1});
  Bucket bucket = bucket_of(0, at::kFloat);
  bucket.buffer = bucket.buffer.to(ranks.device());
  const auto refusal = [&] {
    return testing::error_of<InvalidArgument>([&] { device->average(bucket, plan, 0); });
  };
  set("wide", "topk(density=0.1)");
  EXPECT_THAT(refusal(), HasSubstr("is averaged by gather_reduce alone: strategy hierarchical"));
  set("wide", "quantize(bits=4)");
  make_on_hosts({0, 0, 0, 0});
  EXPECT_THAT(refusal(), HasSubstr("strategy hierarchical cannot average"));
}

}  // namespace
}  // namespace thinwire::comm
