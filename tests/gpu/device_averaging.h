// One averager on CUDA tensors over NCCL, on fake devices, and one on the CPU over Gloo, that are
// given the same gradients under a schedule of the device.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/cuda/CUDAFunctions.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/tests/comm/average/averager_fixture.h"
#include "thinwire/tests/gpu/every_schedule.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"

namespace thinwire::testing {

inline std::string text_of(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
  return {bytes, bytes + tensor.nbytes()};
}

class DeviceAveraging : public EverySchedule {
 protected:
  void TearDown() override {
    c10::cuda::device_synchronize();
    EXPECT_THAT(fake_gpu::findings(), ::testing::IsEmpty());
  }

  // Averages on both sides and compares the bits.
  void average(comm::Bucket bucket, std::int64_t step) {
    comm::Bucket on_device = bucket;
    on_device.buffer = bucket.buffer.to(ranks.device());
    device->average(on_device, plan, step);
    cpu->average(bucket, plan, step);
    const at::Tensor found = on_device.buffer.cpu();
    // Which NaN comes of a conversion is ATen's own affair.
    EXPECT_TRUE(at::equal(found.isnan(), bucket.buffer.isnan())) << "step " << step;
    EXPECT_TRUE(text_of(found.nan_to_num(1)) == text_of(bucket.buffer.nan_to_num(1)))
        << "step " << step << ": " << found.view(-1).ne(bucket.buffer).sum().item<std::int64_t>()
        << " of " << found.numel() << " elements differ";
  }
  // Of a step that is averaged on the device alone, and in which nothing may wait.
  fake_gpu::Counters counters_of_step(std::int64_t step) {
    comm::Bucket bucket = bucket_of(step, at::kFloat);
    bucket.buffer = bucket.buffer.to(ranks.device());
    c10::cuda::device_synchronize();
    const auto before = fake_gpu::counters();
    {
      const fake_gpu::NoHostSync nothing_waits;
      device->average(bucket, plan, step);
    }
    return fake_gpu::counters() - before;
  }
  void make(comm::AveragerOptions options = {}) {
    options.seed = 7;
    options.chunk_bytes = chunk_bytes;
    device = std::make_unique<comm::BucketAverager>(nccl, options);
    cpu = std::make_unique<comm::BucketAverager>(gloo, options);
  }
  comm::Bucket bucket_of(std::int64_t step, at::ScalarType dtype) const {
    return random_bucket(shapes, static_cast<std::uint64_t>(step), ranks.rank, dtype);
  }

  const GpuRanks& ranks = GpuRanks::get();
  const c10::intrusive_ptr<c10d::ProcessGroup> nccl = [] {
    static const auto made = GpuRanks::get().nccl_group("device");
    return made;
  }();
  const c10::intrusive_ptr<c10d::ProcessGroup> gloo = [] {
    static const auto made = GpuRanks::get().gloo_group("cpu");
    return made;
  }();
  std::size_t chunk_bytes = 7000;  // a bucket has several chunks
  LayerShapes shapes;
  comm::Plan plan;
  std::unique_ptr<comm::BucketAverager> device, cpu;
};

}  // namespace thinwire::testing
