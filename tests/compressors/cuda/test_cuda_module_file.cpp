// What can be known of the built CUDA module without a GPU: that it holds code for the GPUs it
// should, that it loads, and that it passes CUDA's own errors on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <fstream>
#include <iterator>
#include <set>

#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/compressors/kernels/cuda_abi.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/compressors/cuda/driver.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr const char* kBuilt = THINWIRE_CUDA_MODULE;
constexpr const char* kAnyLibrary = "libm.so.6";  // stands for the driver

// The images of a module, as "sm_80" and "ptx_90". They lie in fat binaries: a header of 16 bytes
// (magic, version, its own size, size of what follows), then images, each with a header of its own
// that holds its kind (1: PTX, 2: machine code), that header's size, the image's size and, at byte
// 28, the architecture.
std::set<std::string> images_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto read = [&](std::size_t at, auto value) {
    if (at + sizeof value > bytes.size()) throw FileError(concat(path, " ends at byte ", at));
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  };
  const std::string magic("\x50\xED\x55\xBA\x01\x00\x10\x00", 8);
  std::set<std::string> images;
  for (std::size_t fat = bytes.find(magic); fat != std::string::npos;
       fat = bytes.find(magic, fat + magic.size())) {
    const std::size_t end = fat + 16 + read(fat + 8, std::uint64_t{});
    for (std::size_t at = fat + 16; at < end;) {
      const auto kind = read(at, std::uint16_t{});
      images.insert(concat(kind == 1 ? "ptx_" : "sm_", read(at + 28, std::uint32_t{})));
      at += read(at + 4, std::uint32_t{}) + read(at + 8, std::uint64_t{});
    }
  }
  return images;
}

TEST(CudaModuleFile, HoldsCodeForAmpereAndHopperAndPtx) {
  EXPECT_THAT(images_of(kBuilt), ::testing::IsSupersetOf({"sm_80", "sm_90", "ptx_90"}));
}

TEST(CudaModuleFile, LoadsWithoutADriver) {
  void* module = dlopen(kBuilt, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(module, nullptr) << dlerror();
  for (const char* name : {"thinwire_cuda_abi", "thinwire_cuda_error", "thinwire_cuda_quantize",
                           "thinwire_cuda_dequantize"}) {
    EXPECT_NE(dlsym(module, name), nullptr) << name;
  }
}

// On hosts that lack NVIDIA's driver.
class WithoutDriver : public ::testing::TestWithParam<const char*> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WithoutDriver);
INSTANTIATE_TEST_SUITE_P(Host, WithoutDriver, ::testing::ValuesIn(testing::missing_driver()));

TEST_P(WithoutDriver, CudasOwnErrorIsPassedOn) {
  const CudaModule module({.disabled = false, .driver = kAnyLibrary, .modules = {kBuilt}});
  EXPECT_EQ(module.path(), kBuilt);
  std::vector<float> values(10);
  std::vector<std::byte> payload(100);
  kernels::QuantizeTask task{{4, kernels::Norm::kMinMax, DType::kFloat32, 1024, 10},
                             false,
                             0,
                             {},
                             values.data(),
                             payload.data(),
                             nullptr};
  EXPECT_THAT([&] { module.quantize(task, nullptr); },
              ThrowsMessage<Error>(AllOf(HasSubstr("quantize"), HasSubstr("driver"))));
  kernels::DequantizeTask back{task.shape, false, payload.data(), values.data()};
  EXPECT_THAT([&] { module.dequantize(back, nullptr); },
              ThrowsMessage<Error>(AllOf(HasSubstr("dequantize"), HasSubstr("driver"))));
  task.input = reinterpret_cast<const std::byte*>(values.data()) + 1;
  EXPECT_THAT([&] { module.quantize(task, nullptr); },
              ThrowsMessage<InvalidArgument>(HasSubstr("aligned")));
  task.shape.numel = 0;
  task.input = nullptr;
  module.quantize(task, nullptr);  // nothing to launch
}

}  // namespace
}  // namespace thinwire
