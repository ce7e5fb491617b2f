// OuterOptimizer on CUDA parameters over NCCL, on fake devices: outer steps give the weights of
// those on the CPU over Gloo bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"
#include "thinwire/tests/torch_ext/outer/outer_toy.h"

namespace thinwire {
namespace {

using testing::GpuRanks;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Toy;

// A replica of its own on a device, all ranks' of one kind being one training.
struct Replica {
  Replica(const c10::intrusive_ptr<c10d::ProcessGroup>& group, at::Device device,
          const OuterOptimizerOptions& options)
      : toy((prepared.to(device), prepared)),
        inner(toy.parameters(), torch::optim::SGDOptions(testing::kRate)),
        optimizer(toy, inner, group, options) {}
  void step(int rank, int number, bool poisoned = false) {
    toy.set_gradients(rank, number);
    if (poisoned) toy.big.mutable_grad()[3][4] = std::nan("");
    optimizer.step();
  }
  Toy prepared;
  Toy& toy;
  torch::optim::SGD inner;
  OuterOptimizer optimizer;
};

class DeviceOuter : public testing::EverySchedule {
 protected:
  void TearDown() override {
    c10::cuda::device_synchronize();
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  }
  // Both trainings have the same weights and the same state.
  static void expect_same(const Replica& device, const Replica& cpu, const std::string& what) {
    EXPECT_TRUE(same_bits(device.toy.flat().cpu(), cpu.toy.flat())) << what;
    EXPECT_EQ(device.optimizer.synchronised_crc32c(), cpu.optimizer.synchronised_crc32c()) << what;
    const OuterState of_device = device.optimizer.state(), of_cpu = cpu.optimizer.state();
    ASSERT_EQ(of_device.size(), of_cpu.size()) << what;
    for (const auto& [name, tensor] : of_cpu)
      EXPECT_TRUE(same_bits(of_device.at(name), tensor)) << what << " " << name;
  }

  const GpuRanks& ranks = GpuRanks::get();
  const c10::intrusive_ptr<c10d::ProcessGroup> nccl = [] {
    static const auto made = GpuRanks::get().nccl_group("outer_device");
    return made;
  }();
  const c10::intrusive_ptr<c10d::ProcessGroup> gloo = [] {
    static const auto made = GpuRanks::get().gloo_group("outer_cpu");
    return made;
  }();
};
INSTANTIATE_TEST_SUITE_P(, DeviceOuter,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceOuter, TrainsToTheBitsOfTheCpu) {
  std::vector<OuterOptimizerOptions> all = {
      {.compression = "quantize(bits=4, bucket=512)", .min_numel = 1},
      {.compression = "ecsq(bits=4)", .min_numel = 1},
      {.learning_rate = 0.7,
       .momentum = 0.9,
       .nesterov = false,
       .compression = "cast(format=bf16)",
       .granularity = peft::Granularity::kGlobal,
       .min_numel = 1}};
  // Of three ranks and more the CPU lets owners add entries, and NCCL adds what is uncompressed in
  // an order of its own.
  if (ranks.size == 2) {
    all.push_back({.compression = "ternary(density=0.05)"});
    all.push_back({.compression = "none"});
  }
  for (OuterOptimizerOptions& options : all) {
    options.inner_steps = 2;
    Replica device(nccl, ranks.device(), options), cpu(gloo, at::kCPU, options);
    for (int step = 0; step < 5; ++step) {
      device.step(ranks.rank, step);
      cpu.step(ranks.rank, step);
    }
    expect_same(device, cpu, options.compression);
    EXPECT_EQ(device.optimizer.summary().outer_steps, 2);
    EXPECT_GT(device.optimizer.summary().traffic.sent_bytes, 0u);
  }
}

TEST_P(DeviceOuter, OverGlooTooAndAStateGoesOnOnTheOtherSide) {
  const OuterOptimizerOptions options{
      .inner_steps = 1, .compression = "onebit(bucket=256)", .min_numel = 1};
  Replica device(gloo, ranks.device(), options), cpu(gloo, at::kCPU, options);
  for (int step = 0; step < 2; ++step) {
    device.step(ranks.rank, step);
    cpu.step(ranks.rank, step);
  }
  const OuterState of_device = device.optimizer.state();
  device.optimizer.load_state(cpu.optimizer.state());
  cpu.optimizer.load_state(of_device);
  device.step(ranks.rank, 2);
  cpu.step(ranks.rank, 2);
  expect_same(device, cpu, "after loading");
}

TEST_P(DeviceOuter, ADeltaThatIsNotFiniteTakesAllBackToTheLastMeeting) {
  const OuterOptimizerOptions options{
      .inner_steps = 1, .compression = "quantize(bits=4, bucket=512)", .min_numel = 1};
  Replica device(nccl, ranks.device(), options), cpu(gloo, at::kCPU, options);
  for (int step = 0; step < 3; ++step) {
    const bool poisoned = step == 1 && ranks.rank == 1;
    device.step(ranks.rank, step, poisoned);
    cpu.step(ranks.rank, step, poisoned);
  }
  EXPECT_EQ(device.optimizer.summary().skipped_steps, 1);
  expect_same(device, cpu, "after a skipped step");
}

TEST_P(DeviceOuter, WhatCannotBeExchangedIsRefusedWhenItIsMade) {
  const auto refused = [&](const auto& make) { return testing::error_of<InvalidArgument>(make); };
  EXPECT_THAT(
      refused([&] { Replica(nccl, ranks.device(), {.compression = "spectral(bits=2)"}); }),
      AllOf(HasSubstr("is in GPU memory, where spectral"), HasSubstr("has no kernels yet")));
  EXPECT_THAT(refused([&] {
                Toy toy;
                toy.bias.set_data(toy.bias.to(ranks.device()));
                torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(1));
                OuterOptimizer(toy, inner, nccl);
              }),
              HasSubstr("'bias' is on cuda:"));
}

}  // namespace
}  // namespace thinwire
