// DistributedDataParallel on CUDA tensors over NCCL, on fake devices: training gives the parameters
// of training on the CPU bit for bit, beside the backward pass and without a wait of the host.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using testing::Ddp;
using testing::GpuRanks;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Net;

class DeviceDdp : public testing::EverySchedule {
 protected:
  void TearDown() override {
    c10::cuda::device_synchronize();
    EXPECT_THAT(fake_gpu::findings(), IsEmpty());
  }

  struct Training {
    std::shared_ptr<Net> net;
    std::unique_ptr<Ddp> ddp;
    std::unique_ptr<torch::optim::SGD> optimizer;

    void step(int rank, int number) {
      ddp->zero_grad();
      const at::Tensor x = testing::inputs(rank, number).to(net->first.device());
      testing::loss_of(ddp->forward(x, true).first, x).backward();
      optimizer->step();
    }
  };
  Training training(const c10::intrusive_ptr<c10d::ProcessGroup>& group, at::Device device,
                    const std::string& spec, bool all_compressed = false) {
    Training made;
    made.net = std::make_shared<Net>(1);
    made.net->to(device);
    DistributedDataParallelOptions options;
    options.compression = CompressionOptions(spec);
    options.compression.warmup_steps = all_compressed ? 0 : 1;
    options.compression.compress_1d = all_compressed;
    if (all_compressed) options.compression.min_numel = 1;
    options.bucket_cap_mb = 0.004;
    made.ddp = std::make_unique<Ddp>(made.net, group, options);
    made.optimizer = std::make_unique<torch::optim::SGD>(made.net->parameters(), 0.05);
    return made;
  }

  static void expect_same_parameters(const Training& device, const Training& cpu,
                                     const std::string& spec) {
    for (const auto& item : cpu.net->named_parameters()) {
      EXPECT_TRUE(at::equal(device.net->named_parameters()[item.key()].cpu(), item.value()))
          << spec << " " << item.key();
    }
  }

  const GpuRanks& ranks = GpuRanks::get();
  const c10::intrusive_ptr<c10d::ProcessGroup> nccl = [] {
    static const auto made = GpuRanks::get().nccl_group("ddp_device");
    return made;
  }();
  const c10::intrusive_ptr<c10d::ProcessGroup> gloo = [] {
    static const auto made = GpuRanks::get().gloo_group("ddp_cpu");
    return made;
  }();
};
INSTANTIATE_TEST_SUITE_P(, DeviceDdp,
                         ::testing::Values(fake_gpu::Schedule::kEager, fake_gpu::Schedule::kLazy),
                         testing::name_of_schedule);

TEST_P(DeviceDdp, TrainsToTheBitsOfTheCpu) {
  for (const char* spec : {"quantize(bits=4)", "cast(format=fp8_e4m3)", "ecsq(bits=4)", "none"}) {
    // What goes as it is, the backends add in orders of their own.
    const bool all_compressed = ranks.size > 2;
    if (all_compressed && spec == std::string("none")) continue;
    Training device = training(nccl, ranks.device(), spec, all_compressed);
    Training cpu = training(gloo, at::kCPU, spec, all_compressed);
    for (int step = 0; step < 4; ++step) {
      device.step(ranks.rank, step);
      cpu.step(ranks.rank, step);
    }
    expect_same_parameters(device, cpu, spec);
    EXPECT_TRUE(device.ddp->replicas_equal());
    // The state goes on where it is loaded.
    const auto of_device = device.ddp->state(), of_cpu = cpu.ddp->state();
    ASSERT_EQ(of_device.size(), of_cpu.size()) << spec;
    for (const auto& [name, tensor] : of_cpu)
      EXPECT_TRUE(at::equal(of_device.at(name), tensor)) << spec << " " << name;
  }
}

// Through host memory, on the communication thread.
TEST_P(DeviceDdp, TrainsOverGlooToTheBitsOfTheCpu) {
  for (const char* spec : {"quantize(bits=4)", "ecsq(bits=4)"}) {
    Training device = training(gloo, ranks.device(), spec);
    Training cpu = training(gloo, at::kCPU, spec);
    for (int step = 0; step < 4; ++step) {
      device.step(ranks.rank, step);
      cpu.step(ranks.rank, step);
    }
    expect_same_parameters(device, cpu, spec);
  }
}

// The gradients of a window are watched on the host.
TEST_P(DeviceDdp, LGrecoPlansAsOnTheCpu) {
  for (const char* family :
       {"family=quantize, reference=4", "family=mixed, reference=powersgd(rank=2)"}) {
    // As above: a mixed plan may leave layers uncompressed.
    const bool all_compressed = ranks.size > 2;
    if (all_compressed && family != std::string("family=quantize, reference=4")) continue;
    const std::string spec =
        std::string("lgreco(") + family +
        ", period=4, first=2, window=2, warmup=" + (all_compressed ? "0)" : "1)");
    Training device = training(nccl, ranks.device(), spec, all_compressed);
    Training cpu = training(gloo, at::kCPU, spec, all_compressed);
    for (int step = 0; step < 8; ++step) {
      device.step(ranks.rank, step);
      cpu.step(ranks.rank, step);
    }
    ASSERT_NE(device.ddp->allocation(), nullptr);
    EXPECT_EQ(device.ddp->plan().text(), cpu.ddp->plan().text());
    expect_same_parameters(device, cpu, spec);
    EXPECT_GE(device.ddp->summary().adaptation.plans, 1);
  }
}

TEST_P(DeviceDdp, ASteadyStepDoesNotWaitForTheDevice) {
  Training device = training(nccl, ranks.device(), "quantize(bits=4)");
  const at::Tensor x = testing::inputs(ranks.rank, 0).to(ranks.device());
  fake_gpu::Counters counted;
  for (int step = 0; step < 5; ++step) {
    device.ddp->zero_grad();
    const at::Tensor loss = testing::loss_of(device.ddp->forward(x, true).first, x);
    c10::cuda::device_synchronize();
    const auto before = fake_gpu::counters();
    loss.backward();
    counted = fake_gpu::counters() - before;
    c10::cuda::device_synchronize();
    device.optimizer->step();
  }
  EXPECT_EQ(counted.host_syncs, 0u);
  EXPECT_EQ(counted.to_host, 1u);
}

TEST_P(DeviceDdp, WhatHasNoKernelsIsRefusedWhenItIsMade) {
  for (const char* spec : {"topk(density=0.1, select=sampled)", "spectral", "ecsq(error=0.1)"}) {
    EXPECT_THAT(testing::error_of<InvalidArgument>([&] { training(nccl, ranks.device(), spec); }),
                AllOf(HasSubstr("is in GPU memory, where"),
                      HasSubstr("quantize, cast, onebit, terngrad, randomk, powersgd(")))
        << spec;
  }
  EXPECT_THAT(testing::error_of<InvalidArgument>(
                  [&] { training(nccl, ranks.device(), "lgreco(objective=time)"); }),
              HasSubstr("lgreco(objective=time) goes by the speeds of codecs on the CPU"));
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] {
                training(nccl, ranks.device(),
                         "lgreco(family=topk, reference=topk(density=0.1, select=sampled))");
              }),
              HasSubstr("is in GPU memory, where topk"));
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { training(nccl, ranks.device(), "auto"); }),
              HasSubstr("compression 'auto' goes by the times of averages on the CPU"));
}

}  // namespace
}  // namespace thinwire
