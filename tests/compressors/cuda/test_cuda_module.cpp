// Whatever of the CUDA module is missing is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/compressors/cuda/driver.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr const char* kBuilt = THINWIRE_CUDA_MODULE;  // empty in a build without CUDA
constexpr const char* kAnyLibrary = "libm.so.6";      // stands for the driver

auto load(const CudaModule::Places& places) {
  return [places] { CudaModule module(places); };
}

TEST(CudaModule, SaysThatItIsSwitchedOff) {
  EXPECT_THAT(load({.disabled = true, .driver = kAnyLibrary, .modules = {kBuilt}}),
              ThrowsMessage<InvalidArgument>(HasSubstr("THINWIRE_DISABLE_CUDA=1")));
}

TEST(CudaModule, NamesAMissingDriver) {
  EXPECT_THAT(load({.disabled = false, .driver = "libnodriver.so.1", .modules = {kBuilt}}),
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("NVIDIA's driver"),
                                                   HasSubstr("libnodriver.so.1"),
                                                   HasSubstr("install the driver"))));
}

TEST(CudaModule, NamesEveryPlaceThatLacksTheModule) {
  EXPECT_THAT(
      load({.disabled = false, .driver = kAnyLibrary, .modules = {"/none/a.so", "/none/b.so"}}),
      ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("/none/a.so"), HasSubstr("/none/b.so"),
                                           HasSubstr("THINWIRE_WITH_CUDA=ON"))));
}

TEST(CudaModule, RefusesALibraryThatIsNotItsModule) {
  EXPECT_THAT(load({.disabled = false, .driver = kAnyLibrary, .modules = {kAnyLibrary}}),
              ThrowsMessage<InvalidArgument>(
                  AllOf(HasSubstr(kAnyLibrary), HasSubstr("thinwire_cuda_abi"))));
}

// On hosts that lack NVIDIA's driver.
class WithoutDriver : public ::testing::TestWithParam<const char*> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WithoutDriver);
INSTANTIATE_TEST_SUITE_P(Host, WithoutDriver, ::testing::ValuesIn(testing::missing_driver()));

// What a user sees who passes a tensor in GPU memory.
TEST_P(WithoutDriver, TheCodecSaysWhatIsMissing) {
  const auto codec = make_codec("quantize(bits=4)");
  std::vector<float> values(10);
  TensorView view = view_of(std::span(values));
  view.device = Device::kCuda;
  std::vector<std::byte> payload(codec->max_compressed_bytes(10, DType::kFloat32));
  const auto missing = ThrowsMessage<InvalidArgument>(HasSubstr("NVIDIA's driver"));
  EXPECT_THAT([&] { codec->compress(as_const(view), {}, payload); }, missing);
  EXPECT_THAT([&] { codec->compress_and_reconstruct(as_const(view), {}, payload, view); }, missing);
  EXPECT_THAT([&] { codec->decompress(payload, {}, view, WriteMode::kAssign); }, missing);
}

}  // namespace
}  // namespace thinwire
