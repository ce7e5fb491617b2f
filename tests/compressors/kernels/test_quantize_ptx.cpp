// The quantise kernels as nvcc compiles them: their PTX is executed on the host and compared with
// the scalar reference byte for byte, with every access checked. What breaks a kernel is shown to
// be found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include "thinwire/compressors/kernels/quantize_block.h"
#include "thinwire/compressors/kernels/quantize_ref.h"
#include "thinwire/compressors/kernels/quantize_task.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/barriers.h"
#include "thinwire/tests/support/ptx/machine.h"

namespace thinwire {
namespace {

using kernels::DequantizeTask;
using kernels::Norm;
using kernels::QuantizeConfig;
using kernels::QuantizeTask;
using testing::Tensor;
namespace ptx = testing::ptx;

constexpr std::uint64_t kFirst = 5;  // not at the start of a block of random words

std::string text_of(const char* path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

const std::string& ptx_text() {
  static const std::string text = text_of(THINWIRE_QUANTIZE_PTX);
  return text;
}

const std::vector<ptx::Kernel>& compiled() {
  static const std::vector<ptx::Kernel> kernels = ptx::parse(ptx_text());
  return kernels;
}

// The instance of a kernel template for a dtype, by its mangled name.
const ptx::Kernel& kernel_of(const std::vector<ptx::Kernel>& kernels, const std::string& name,
                             DType dtype) {
  const std::string mangled = concat(name.size(), name, "ILNS_5DTypeE", static_cast<int>(dtype));
  for (const auto& kernel : kernels) {
    if (kernel.name.find(mangled) != std::string::npos) return kernel;
  }
  throw std::runtime_error("there is no kernel " + mangled);
}

// One tensor, encoded and decoded as CUDA's launches would.
struct Case {
  QuantizeConfig config;
  DType dtype = DType::kFloat32;
  std::vector<float> values;
  std::size_t misaligned = 0;  // of the payload
  std::uint32_t threads = 32;
  std::uint64_t seed = 0;
};

struct Results {
  std::vector<std::byte> payload;
  Tensor reconstruction, assigned, accumulated;
};

Results reference(const Case& one) {
  const auto numel = static_cast<std::int64_t>(one.values.size());
  std::size_t bytes = one.misaligned;
  for (std::int64_t first = 0; first < numel; first += one.config.bucket)
    bytes +=
        kernels::bucket_bytes(one.config.norm, one.config.bits,
                              static_cast<std::size_t>(std::min(one.config.bucket, numel - first)));
  const Tensor input(one.dtype, one.values);
  Results results{std::vector<std::byte>(bytes), Tensor(input), Tensor(input), Tensor(input)};
  auto* payload = results.payload.data() + one.misaligned;
  kernels::ref::quantize(one.config, one.dtype, input.data(), numel,
                         PhiloxStream::of({.seed = 7, .step = 3, .layer = 1}), kFirst, payload,
                         results.reconstruction.data());
  kernels::ref::dequantize(one.config, payload, one.dtype, results.assigned.data(), numel,
                           WriteMode::kAssign);
  kernels::ref::dequantize(one.config, payload, one.dtype, results.accumulated.data(), numel,
                           WriteMode::kAccumulate);
  return results;
}

template <typename Task>
void launch(const ptx::Kernel& kernel, const Task& task, const Case& one,
            ptx::GlobalMemory& memory) {
  const auto blocks = static_cast<std::uint32_t>(kernels::bucket_count(task.shape));
  if (blocks == 0) return;
  ptx::run(kernel,
           {.blocks = blocks,
            .threads = one.threads,
            .parameters = std::as_bytes(std::span(&task, 1)),
            .seed = one.seed},
           memory);
}

// With the sizes of `like`; what the kernels do not write stays as it was or is a fault.
Results executed(const std::vector<ptx::Kernel>& kernels, const Case& one, const Results& like) {
  const auto numel = static_cast<std::int64_t>(one.values.size());
  const Tensor input(one.dtype, one.values);
  Results results{std::vector<std::byte>(like.payload.size()), Tensor(input), Tensor(input),
                  Tensor(input)};
  const kernels::QuantizeShape shape{one.config.bits, one.config.norm, one.dtype, one.config.bucket,
                                     numel};
  auto* payload = results.payload.data() + one.misaligned;
  const std::size_t payload_bytes = results.payload.size() - one.misaligned;
  {
    ptx::GlobalMemory memory;
    memory.add(payload, payload_bytes, /*defined=*/false);
    // The reconstruction takes the place of the input.
    memory.add(results.reconstruction.data(), results.reconstruction.bytes().size());
    launch(kernel_of(kernels, "quantize_kernel", one.dtype),
           QuantizeTask{shape, one.config.stochastic, kFirst,
                        PhiloxStream::of({.seed = 7, .step = 3, .layer = 1}),
                        results.reconstruction.data(), payload, results.reconstruction.data()},
           one, memory);
  }
  for (Tensor* output : {&results.assigned, &results.accumulated}) {
    ptx::GlobalMemory memory;
    memory.add(payload, payload_bytes);
    memory.add(output->data(), output->bytes().size());
    launch(kernel_of(kernels, "dequantize_kernel", one.dtype),
           DequantizeTask{shape, output == &results.accumulated, payload, output->data()}, one,
           memory);
  }
  return results;
}

bool equal(const Results& a, const Results& b) {
  return a.payload == b.payload && a.reconstruction.bytes() == b.reconstruction.bytes() &&
         a.assigned.bytes() == b.assigned.bytes() && a.accumulated.bytes() == b.accumulated.bytes();
}

std::vector<Case> cases() {
  const auto values = testing::normal_values(1601, 1);
  std::vector<Case> all;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const Norm norm : {Norm::kMinMax, Norm::kLinf, Norm::kL2}) {
      for (const bool stochastic : {false, true}) {
        for (const std::size_t size : {1, 7, 513, 1601}) {
          if (size > 513 && bits % 4 != 0) continue;
          for (const DType dtype :
               {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
            all.push_back({{bits, 1024, norm, stochastic},
                           dtype,
                           {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(size)},
                           all.size() % 4,
                           all.size() % 5 == 0 ? 256u : 32u,
                           all.size()});
          }
        }
      }
    }
  }
  return all;
}

TEST(QuantizePtx, EveryWidthNormRoundingSizeAndDTypeEqualsTheReference) {
  for (const Case& one : cases()) {
    const Results expected = reference(one);
    ASSERT_TRUE(equal(executed(compiled(), one, expected), expected))
        << "bits " << one.config.bits << " norm " << static_cast<int>(one.config.norm)
        << " stochastic " << one.config.stochastic << " dtype " << name_of(one.dtype) << " numel "
        << one.values.size() << " threads " << one.threads;
  }
}

TEST(QuantizePtx, NonFiniteAndExtremeValuesEqualTheReference) {
  for (const float special :
       {-0.0f, 1e-45f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const Norm norm : {Norm::kMinMax, Norm::kLinf, Norm::kL2}) {
      Case one{{4, 512, norm, false}, DType::kFloat32, testing::normal_values(700, 5), 1, 64, 3};
      one.values[600] = special;
      const Results expected = reference(one);
      ASSERT_TRUE(equal(executed(compiled(), one, expected), expected)) << special;
    }
  }
}

// What running a mutant of a kernel tells: a fault as text, "wrong" numbers, or nothing.
std::string finding(const std::vector<ptx::Kernel>& kernels) {
  for (const std::uint64_t seed : {1, 2, 3}) {
    Case one{
        {3, 1024, Norm::kL2, true}, DType::kFloat32, testing::normal_values(1601, 1), 1, 64, seed};
    const Results expected = reference(one);
    try {
      if (!equal(executed(kernels, one, expected), expected)) return "wrong";
    } catch (const std::runtime_error& error) {
      return error.what();
    }
  }
  return {};
}

TEST(QuantizePtx, EveryBarrierThatIsTakenOutIsFound) {
  const ptx::Kernel& whole = kernel_of(compiled(), "quantize_kernel", DType::kFloat32);
  EXPECT_EQ(ptx::expect_barriers_are_needed(compiled(), {whole.name}, finding), 4);
  EXPECT_EQ(finding(compiled()), "");
}

TEST(QuantizePtx, FusedMultiplyAddsAreFound) {
  const auto fused = ptx::parse(text_of(THINWIRE_QUANTIZE_FMA_PTX));
  int wrong = 0;
  for (const Case& one : cases()) {
    const Results expected = reference(one);
    wrong += !equal(executed(fused, one, expected), expected);
  }
  EXPECT_GT(wrong, 0) << "--fmad=false would not be needed";
}

TEST(QuantizePtx, AccessesOutOfBoundsAreFound) {
  Case one{{4, 1024, Norm::kMinMax, false}, DType::kFloat32, testing::normal_values(600, 2)};
  Results like = reference(one);
  like.payload.resize(like.payload.size() - 1);
  EXPECT_THAT([&] { executed(compiled(), one, like); },
              ::testing::ThrowsMessage<std::runtime_error>(::testing::HasSubstr("no memory of")));
}

}  // namespace
}  // namespace thinwire
