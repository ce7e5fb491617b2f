// The codecs of the hot path allocate nothing once they are made. Counts every operator new of the
// program, hence a program of its own.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "payloads.h"

namespace {
std::size_t allocations = 0;
}

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace thinwire {
namespace {

class Allocations : public ::testing::TestWithParam<const char*> {};

TEST_P(Allocations, NoneInSteadyState) {
  const auto codec = make_codec(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const testing::Tensor input(dtype, testing::normal_values(5000, 53));
    testing::Tensor output(dtype, 5000);
    std::vector<std::byte> payload(codec->max_compressed_bytes(5000, dtype));
    const std::int64_t shape[] = {50, 100};
    ConstTensorView from = input.view();
    TensorView to = output.view();
    from.shape = to.shape = shape;
    const auto step = [&] {
      const std::size_t bytes = codec->compress(from, {}, payload);
      codec->decompress(std::span(payload).first(bytes), {}, to, WriteMode::kAccumulate);
      codec->compress_and_reconstruct(from, {}, payload, to);
    };
    step();
    const std::size_t before = allocations;
    for (int i = 0; i < 10; ++i) step();
    EXPECT_EQ(allocations, before);
  }
}

INSTANTIATE_TEST_SUITE_P(HotPath, Allocations,
                         ::testing::Values("identity", "cast(bf16)", "quantize(bits=4)",
                                           "quantize(bits=3, norm=l2, rounding=stochastic)",
                                           "cast(fp8_e4m3)", "topk",
                                           "topk(density=0.1, select=sampled)", "randomk", "onebit",
                                           "terngrad", "ternary", "powersgd", "ecsq", "spectral"));

}  // namespace
}  // namespace thinwire
