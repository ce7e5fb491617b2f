// The ranks of a test on fake devices, each a process, for tests of thinwire_gpu_test(RANKS ...).
#pragma once

#include <string>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace thinwire::testing {

// One rank's view. Every rank runs all tests in the same order; each has the device of its number.
struct GpuRanks {
  int rank = 0;
  int size = 1;
  c10::intrusive_ptr<c10d::Store> store;  // the same for all

  // Rank 0 of 1 in a program that was started without ranks.
  static GpuRanks& get();

  c10::Device device() const { return {c10::kCUDA, static_cast<c10::DeviceIndex>(rank)}; }

  // A new group of all ranks, collective, under a name of its own: CUDA tensors over NCCL, CPU
  // tensors over Gloo.
  c10::intrusive_ptr<c10d::ProcessGroup> nccl_group(
      const std::string& name, std::chrono::milliseconds timeout = std::chrono::seconds(20)) const;
  // Gloo for both.
  c10::intrusive_ptr<c10d::ProcessGroup> gloo_group(const std::string& name) const;
};

}  // namespace thinwire::testing
