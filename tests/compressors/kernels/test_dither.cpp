#include "thinwire/compressors/kernels/dither.h"

#include <gtest/gtest.h>

#include <vector>

#include "thinwire/common/text.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::kernels {
namespace {

TEST(Dither, IsTheStreamsOnEveryTarget) {
  const PhiloxStream stream = PhiloxStream::of({.seed = 11, .step = 3});
  constexpr std::uint64_t kFirst = (std::uint64_t{1} << 32) - 3;
  constexpr float kUnit = 0x1p-16f * 0.3f;
  for (const std::size_t n :
       {std::size_t{1}, std::size_t{8}, std::size_t{511}, std::size_t{1300}}) {
    const auto values = thinwire::testing::standard_normal(n, 1);
    std::vector<float> expected(n);
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t word = stream.block(kFirst + i / 8)[i % 8 / 2];
      const std::uint32_t half = i % 2 == 0 ? word & 0xFFFF : word >> 16;
      expected[i] = values[i] + (static_cast<float>(half) - 32767.5f) * kUnit;
    }
    for (const auto& target : simd_targets()) {
      set_simd_target(target);
      std::vector<float> out(n);
      dither(values, kUnit, stream, kFirst, out.data());
      EXPECT_EQ(out, expected) << target << " " << n;
    }
    set_simd_target("");
  }
}

}  // namespace
}  // namespace thinwire::kernels
