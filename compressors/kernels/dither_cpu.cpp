#include "thinwire/compressors/kernels/dither.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/dither_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/compressors/kernels/philox-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kDitherBlocks = 64, kHalves = 8;

void Dither(const float* values, std::size_t n, float unit, const PhiloxStream& stream,
            std::uint64_t first, float* out) {
  alignas(64) std::uint32_t words[kDitherBlocks * 4];
  alignas(64) std::uint16_t halves[kDitherBlocks * kHalves];
  static_assert(sizeof words == sizeof halves);
  for (std::size_t at = 0; at < n; at += kDitherBlocks * kHalves) {
#if HWY_TARGET == HWY_SCALAR
    for (std::size_t b = 0; b < kDitherBlocks; ++b) {
      const auto block = stream.block(first + b);
      std::copy_n(block.data(), 4, words + 4 * b);
    }
#else
    PhiloxBlocks(stream, first, kDitherBlocks, words);
#endif
    first += kDitherBlocks;
    std::memcpy(halves, words, sizeof words);
    const std::size_t count = std::min(kDitherBlocks * kHalves, n - at);
    const auto add = [&](auto d, std::size_t i) HWY_ATTR {
      const hn::RebindToSigned<decltype(d)> di;
      const auto half = hn::LoadU(hn::Rebind<std::uint16_t, decltype(d)>(), halves + i);
      const auto centred = hn::Sub(hn::ConvertTo(d, hn::PromoteTo(di, half)), hn::Set(d, 32767.5f));
      const auto noise = hn::Mul(centred, hn::Set(d, unit));
      hn::StoreU(hn::Add(hn::LoadU(d, values + at + i), noise), d, out + at + i);
    };
    const hn::CappedTag<float, 16> d;
    std::size_t i = 0;
    for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) add(d, i);
    for (; i < count; ++i) add(hn::CappedTag<float, 1>(), i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(Dither);

void dither(std::span<const float> values, float unit, const PhiloxStream& stream,
            std::uint64_t first, float* out) {
  THINWIRE_DISPATCH(Dither)(values.data(), values.size(), unit, stream, first, out);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
