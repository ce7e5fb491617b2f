// Experts on weights in GPU memory, on a fake device: the bits of those on the CPU, and back again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/torch_ext/adapter/experts.h"
#include "thinwire/torch_ext/adapter/adapter_state.h"
#include "thinwire/torch_ext/adapter/adapter_switch.h"
#include "thinwire/torch_ext/adapter/lora.h"

namespace thinwire {
namespace {

using peft::test::TemporaryDir;
using testing::base_weights;
using testing::Experts;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Weights;

class DeviceAdapters : public testing::EverySchedule {
 protected:
  void TearDown() override {
    c10::cuda::device_synchronize();
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  }
  static Weights on(at::Device device, const Weights& weights) {
    Weights moved;
    for (const auto& [name, tensor] : weights) moved[name] = tensor.to(device);
    return moved;
  }
  static bool same(const Weights& device, const Weights& cpu) {
    return testing::same_bits(on(at::kCPU, device), cpu);
  }
  const TemporaryDir dir;
};
INSTANTIATE_TEST_SUITE_P(, DeviceAdapters,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceAdapters, DeltasHaveTheBitsOfTheCpuAndLeaveNoTrace) {
  const Experts experts(dir);
  Weights weights = on(at::kCUDA, base_weights()), expected = base_weights();
  AdapterSwitch device(weights), cpu(expected);
  for (const char* name : {"expert1", "expert2"}) {
    const peft::PackedFile file(dir / name);
    AdapterSwitch::Staged staged = device.stage(file);
    {
      const fake_gpu::NoHostSync nothing_waits;
      device.commit(std::move(staged));
    }
    cpu.swap(file);
    EXPECT_TRUE(same(weights, expected)) << name;
    EXPECT_FALSE(same(weights, base_weights()));
  }
  {
    const fake_gpu::NoHostSync nothing_waits;
    device.remove();
  }
  EXPECT_TRUE(same(weights, base_weights()));
}

TEST_P(DeviceAdapters, DenseMergesComeFromTheBareWeights) {
  const Experts experts(dir);
  testing::merge_two(dir);
  Weights weights = on(at::kCUDA, base_weights()), expected = base_weights();
  AdapterSwitch device(weights), cpu(expected);
  for (const char* name : {"expert1", "merged", "expert2"}) {
    const peft::PackedFile file(dir / name);
    device.swap(file);
    cpu.swap(file);
    EXPECT_TRUE(same(weights, expected)) << name;
  }
  device.remove();
  EXPECT_TRUE(same(weights, base_weights()));
}

TEST_P(DeviceAdapters, ALoraOnADeviceIsThatOnTheCpu) {
  const auto made = [&](at::Device device) {
    torch::nn::Sequential base(torch::nn::Linear(30, 20));
    base->to(device);
    torch::manual_seed(3);
    return std::make_shared<Lora>(base.ptr(), LoraOptions{.rank = 4});
  };
  const auto device = made(at::kCUDA), cpu = made(at::kCPU);
  EXPECT_TRUE(same(device->factors(), cpu->factors()));
  AdapterState tuned = cpu->state();
  for (auto& [name, tensor] : tuned.tensors) tensor.add_(testing::random(tensor.sizes(), 5), 0.1);
  write_adapter(tuned, dir / "adapter", false);
  peft::pack(peft::open_adapter_dir(dir / "adapter"), dir / "packed", {.density = 0.3});
  const Weights bare = cpu->state().tensors;
  AdapterSwitch expert(*device);
  expert.swap(peft::PackedFile(dir / "packed"));
  EXPECT_TRUE(same(device->factors(), read_adapter(dir / "packed").tensors));
  expert.remove();
  EXPECT_TRUE(same(device->factors(), bare));
}

TEST_P(DeviceAdapters, WeightsThatChangeUnderAnExpertAreNamed) {
  const Experts experts(dir);
  Weights weights = on(at::kCUDA, base_weights());
  AdapterSwitch model(weights);
  model.swap(peft::PackedFile(dir / "expert1"));
  weights["c"].add_(1);
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { model.remove(); }),
              HasSubstr("weight 'c' is Half [40, 7]"));
}

TEST_P(DeviceAdapters, WeightsOnSeveralDevicesAndOfAnotherBaseAreRefused) {
  const Experts experts(dir);
  Weights weights = on(at::kCUDA, base_weights());
  weights["c"] = weights["c"].cpu();
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { AdapterSwitch{weights}; }),
              HasSubstr("weight 'c' is on cpu, weight 'a' on cuda:0"));
  weights = on(at::kCUDA, base_weights());
  weights["a"][0][0].add_(1);
  AdapterSwitch model(weights);
  EXPECT_THAT(
      testing::error_of<InvalidArgument>([&] { model.swap(peft::PackedFile(dir / "expert1")); }),
      HasSubstr("wrong base"));
}

}  // namespace
}  // namespace thinwire
