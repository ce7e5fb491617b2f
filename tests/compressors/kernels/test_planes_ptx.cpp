// The kernels that put ternary planes on tensors in GPU memory as nvcc compiles them: their PTX is
// executed on the host, with every access checked, and gives the bytes of peft::axpy() and, taken
// off, those before.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

#include "thinwire/compressors/kernels/planes_task.h"
#include "thinwire/compressors/peft/ternary_planes.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::testing {
namespace {

using namespace kernels;

const std::vector<ptx::Kernel>& compiled() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_PLANES_PTX);
  return kernels;
}

peft::TernaryPlanes planes_of(std::int64_t numel, double density) {
  peft::TernaryPlanes planes(numel);
  std::mt19937 generator(4);
  std::uniform_real_distribution<double> uniform;
  for (std::int64_t i = 0; i < numel; ++i) {
    if (uniform(generator) < density) planes.set(i, generator() % 2 == 0 ? 1 : -1);
  }
  return planes;
}

struct Weight {
  DType dtype;
  std::int64_t begin;
  std::size_t numel;
  float scale;
  float spread = 1;  // of the values
};

// Weights that are cut out of the planes anywhere, one of no elements among them.
std::vector<Weight> weights_of(std::int64_t numel) {
  const auto rest = static_cast<std::size_t>(numel - 4226);
  return {{DType::kFloat32, 0, 2500, 0.75f},
          {DType::kBFloat16, 2500, 1025, -0.3f},
          {DType::kFloat16, 3525, 0, 1},
          {DType::kFloat16, 3525, 700, 3e-6f, 5e-5f},  // some of them denormal
          {DType::kFloat32, 4225, 1, 0x1p-30f},
          {DType::kFloat32, 4226, rest, 3}};
}

// The weights' memory.
struct Memory {
  explicit Memory(const std::vector<Weight>& weights, peft::PlanesView planes) {
    std::uint32_t before_all = 0;
    for (const std::uint64_t word : planes.mask) {
      before.push_back(before_all);
      before_all += static_cast<std::uint32_t>(std::popcount(word));
    }
    std::uint32_t seed = 1;
    for (const Weight& weight : weights) {
      targets.emplace_back(weight.dtype, normal_values(weight.numel, seed++, weight.spread));
      std::uint32_t first = 0, entries = 0;
      for (std::int64_t i = 0; i < weight.begin + static_cast<std::int64_t>(weight.numel); ++i) {
        if (planes.trit(i) != 0) ++(i < weight.begin ? first : entries);
      }
      kept.emplace_back(entries * size_of(weight.dtype));
      items.push_back({.target = nullptr,
                       .kept = nullptr,
                       .begin = weight.begin,
                       .first_tile = tiles,
                       .numel = static_cast<std::uint32_t>(weight.numel),
                       .kept_before = first,
                       .scale = weight.scale,
                       .dtype = weight.dtype});
      tiles += (weight.numel + kPlanesTile - 1) / kPlanesTile;
    }
  }

  void run(const std::vector<ptx::Kernel>& kernels, PlanesStage stage, peft::PlanesView planes,
           std::uint64_t seed) {
    ptx::GlobalMemory memory;
    for (std::size_t i = 0; i < items.size(); ++i) {
      items[i].target = targets[i].data();
      items[i].kept = kept[i].data();
      memory.add(targets[i].data(), targets[i].size() * size_of(items[i].dtype));
      memory.add(kept[i].data(), kept[i].size(), stage == PlanesStage::kTakeOff);
    }
    const auto add = [&](const auto& values) {
      memory.add(const_cast<void*>(static_cast<const void*>(values.data())),
                 std::as_bytes(std::span(values)).size());
    };
    add(planes.mask);
    add(planes.sign);
    add(before);
    add(items);
    const PlanesTask task{.mask = planes.mask.data(),
                          .sign = planes.sign.data(),
                          .before = before.data(),
                          .items = items.data(),
                          .count = static_cast<std::uint32_t>(items.size()),
                          .tiles = tiles};
    const std::string name = concat("planes_kernelILNS0_11PlanesStageE", static_cast<int>(stage));
    ptx::run(ptx::kernel_of(kernels, name),
             {.blocks = 3,
              .threads = 64,
              .parameters = std::as_bytes(std::span(&task, 1)),
              .seed = seed},
             memory);
  }

  std::vector<Tensor> targets;
  std::vector<std::vector<std::byte>> kept;
  std::vector<std::uint32_t> before;
  std::vector<PlanesItem> items;
  std::uint64_t tiles = 0;
};

// What differs from the CPU's bytes, or the fault as text; empty where nothing does.
std::string finding(const std::vector<ptx::Kernel>& kernels, double density,
                    std::uint64_t seed = 1) {
  const peft::TernaryPlanes planes = planes_of(7001, density);
  const std::vector<Weight> weights = weights_of(planes.numel());
  Memory memory(weights, planes.view());
  const std::vector<Tensor> bare = memory.targets;
  std::vector<Tensor> expected = bare;
  for (std::size_t i = 0; i < weights.size(); ++i)
    peft::axpy(weights[i].scale, planes.view(), weights[i].begin, expected[i].view());
  const auto different = [&](const std::vector<Tensor>& wanted) {
    for (std::size_t i = 0; i < wanted.size(); ++i)
      if (memory.targets[i].bytes() != wanted[i].bytes()) return concat("weight ", i);
    return std::string();
  };
  try {
    memory.run(kernels, PlanesStage::kPutOn, planes.view(), seed);
    if (const std::string what = different(expected); !what.empty()) return what + " put on";
    memory.run(kernels, PlanesStage::kTakeOff, planes.view(), seed);
    if (const std::string what = different(bare); !what.empty()) return what + " taken off";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return {};
}

TEST(PlanesPtx, WeightsHaveTheBytesOfTheCpuAndGetTheirOwnBack) {
  for (const double density : {0.0, 0.05, 0.5, 1.0}) {
    for (const std::uint64_t seed : {1, 2}) EXPECT_EQ(finding(compiled(), density, seed), "");
  }
}

// What is not stored, and entries that are not counted, show.
TEST(PlanesPtx, EveryMutationIsFound) {
  ASSERT_EQ(finding(compiled(), 0.5), "");
  int mutants = 0;
  for (const ptx::Kernel& whole : compiled()) {
    for (std::size_t i = 0; i < whole.code.size(); ++i) {
      std::vector<ptx::Kernel> kernels = compiled();
      ptx::Instruction& mutant =
          kernels[static_cast<std::size_t>(&whole - compiled().data())].code[i];
      if (mutant.op == ptx::Op::kSt) {
        mutant.op = ptx::Op::kBra;
        mutant.target = static_cast<int>(i) + 1;
      } else if (mutant.op == ptx::Op::kPopc) {
        mutant.op = ptx::Op::kMov;
      } else if (mutant.op == ptx::Op::kAdd && mutant.type.kind == ptx::Type::Kind::kFloat) {
        mutant.op = ptx::Op::kSub;
      } else {
        continue;
      }
      ++mutants;
      EXPECT_NE(finding(kernels, 0.5), "") << whole.name << ": PTX line " << mutant.line;
    }
  }
  EXPECT_GT(mutants, 15);
}

}  // namespace
}  // namespace thinwire::testing
