#include "thinwire/compressors/kernels/fp8.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "thinwire/compressors/kernels/fp8_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/fp8_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using D8 = hn::Rebind<std::uint8_t, DF>;
constexpr std::size_t kLanes = hn::MaxLanes(DF());
static_assert(kFp8Block % kLanes == 0, "a block must be whole registers");

// Bits of the largest magnitude, with those of infinity and NaN, of a whole block. Asks for the
// lines one page ahead, where the hardware's prefetcher stops (quantize_encode-inl.h, Note [Reading
// ahead]).
std::uint32_t LargestOfBlock(const float* x) {
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::size_t kLine = 64 / sizeof(float);
  const DF df;
  const DU du;
  auto largest = hn::Zero(du);
  for (std::size_t i = 0; i < kFp8Block; i += kLine) {
    hwy::Prefetch(reinterpret_cast<const float*>(reinterpret_cast<std::uintptr_t>(x + i) + kPage));
    for (std::size_t j = 0; j < kLine; j += kLanes) {
      const auto bits = hn::BitCast(du, hn::LoadU(df, x + i + j));
      largest = hn::Max(largest, hn::And(bits, hn::Set(du, 0x7FFFFFFFu)));
    }
  }
  return hn::GetLane(hn::MaxOfLanes(du, largest));
}

// Bits of the largest finite magnitude.
std::uint32_t LargestFinite(const float* x, std::size_t count) {
  const DF df;
  const DU du;
  const auto infinity = hn::Set(du, kFloatInfinityBits);
  auto largest = hn::Zero(du);
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto key = hn::And(hn::BitCast(du, hn::LoadU(df, x + i)), hn::Set(du, 0x7FFFFFFFu));
    largest = hn::Max(largest, hn::IfThenElseZero(hn::Lt(key, infinity), key));
  }
  std::uint32_t result = hn::GetLane(hn::MaxOfLanes(du, largest));
  for (; i < count; ++i) {
    if (is_finite(x[i])) result = std::max(result, bits_of(x[i]) & 0x7FFFFFFFu);
  }
  return result;
}

template <Fp8 kFormat>
HWY_INLINE void EncodeStep(const float* x, hn::Vec<DF> inverse, std::uint8_t* out) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  const DF df;
  const DU du;
  const D8 d8;
  const auto bits = hn::BitCast(du, hn::Mul(hn::LoadU(df, x), inverse));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto sign = hn::ShiftRight<24>(hn::Xor(bits, magnitude));
  const auto odd = hn::And(hn::ShiftRight<kLayout.shift>(magnitude), hn::Set(du, 1u));
  const auto half = hn::Set(du, (1u << (kLayout.shift - 1)) - 1u);
  const auto rounded = hn::Add(hn::Add(magnitude, half), odd);
  const auto normal =
      hn::Min(hn::ShiftRight<kLayout.shift>(hn::Sub(rounded, hn::Set(du, kLayout.bias))),
              hn::Set(du, kLayout.largest));
  const auto tiny =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), hn::Set(df, kLayout.round))),
              hn::Set(du, bits_of(kLayout.round)));
  auto code = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, kLayout.smallest)), tiny, normal);
  const auto infinity = hn::Set(du, kFloatInfinityBits);
  code = hn::IfThenElse(hn::Eq(magnitude, infinity), hn::Set(du, kLayout.infinity), code);
  code = hn::IfThenElse(hn::Gt(magnitude, infinity), hn::Set(du, kFp8Nan), code);
  const hn::RebindToSigned<DF> di;
  hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, hn::Or(code, sign))), d8, out);
}

// EncodeStep() of elements that are all finite, of a block whose scale keeps them within the
// format.
//
// Adding 2^(e + places) to a number with exponent e rounds it to the format's significand, to
// nearest even, and leaves that as an integer in the low bits of the sum. With the exponent of the
// smallest normal number in place of lower ones that holds for denormals too. Above that exponent
// each power of two is as many codes as the significand has values.
template <Fp8 kFormat>
HWY_INLINE void EncodeFiniteStep(const float* x, hn::Vec<DF> inverse, std::uint8_t* out) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  constexpr std::uint32_t kPlaces = static_cast<std::uint32_t>(kLayout.shift) << 23;
  const DF df;
  const DU du;
  const D8 d8;
  const auto bits = hn::BitCast(du, hn::Mul(hn::LoadU(df, x), inverse));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto exponent =
      hn::And(hn::Max(magnitude, hn::Set(du, kLayout.smallest)), hn::Set(du, kFloatInfinityBits));
  const auto power = hn::Add(exponent, hn::Set(du, kPlaces));
  const auto sum = hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, power)));
  const auto codes_below =
      hn::ShiftRight<kLayout.shift>(hn::Sub(exponent, hn::Set(du, kLayout.smallest)));
  const auto code = hn::Add(hn::Sub(sum, power), codes_below);
  const auto sign = hn::ShiftRight<24>(hn::And(bits, hn::Set(du, 0x80000000u)));
  hn::StoreU(hn::TruncateTo(d8, hn::Or(code, sign)), d8, out);
}

template <Fp8 kFormat>
HWY_INLINE void DecodeStep(const std::uint8_t* in, hn::Vec<DF> multiplier, float* out) {
  constexpr Fp8Layout kLayout = kFp8Layout<kFormat>;
  const DF df;
  const DU du;
  const D8 d8;
  const hn::RebindToSigned<DF> di;
  const auto byte = hn::PromoteTo(du, hn::LoadU(d8, in));
  const auto code = hn::And(byte, hn::Set(du, 0x7Fu));
  const auto sign = hn::ShiftLeft<24>(hn::Xor(byte, code));
  const auto normal = hn::Add(hn::ShiftLeft<kLayout.shift>(code), hn::Set(du, kLayout.bias));
  const auto tiny =
      hn::BitCast(du, hn::Mul(hn::ConvertTo(df, hn::BitCast(di, code)), hn::Set(df, kLayout.step)));
  const auto finite = hn::IfThenElse(hn::Lt(normal, hn::Set(du, kLayout.smallest)), tiny, normal);
  auto value = hn::BitCast(du, hn::Mul(hn::BitCast(df, finite), multiplier));
  const auto is_infinity = hn::Eq(code, hn::Set(du, kLayout.infinity));
  value =
      hn::IfThenElse(hn::Gt(code, hn::Set(du, kLayout.largest)), hn::Set(du, kFloatNanBits), value);
  if constexpr (kLayout.infinity != kFp8Nan) {
    value = hn::IfThenElse(is_infinity, hn::Set(du, kFloatInfinityBits), value);
  }
  hn::StoreU(hn::BitCast(df, hn::Or(value, sign)), df, out);
}

// Encodes at most a block, to fp8_bytes(count).
template <Fp8 kFormat>
HWY_INLINE void EncodeBlock(const float* x, std::size_t count, std::uint8_t* out) {
  const DF df;
  if (count == kFp8Block) {
    const std::uint32_t largest = LargestOfBlock(x);
    if (largest < kFloatInfinityBits) {
      const std::uint32_t scale = fp8_scale<kFormat>(largest);
      *out++ = static_cast<std::uint8_t>(scale);
      const auto inverse = hn::Set(df, fp8_inverse(scale));
      for (std::size_t i = 0; i < kFp8Block; i += kLanes) {
        EncodeFiniteStep<kFormat>(x + i, inverse, out + i);
      }
      return;
    }
  }
  const std::uint32_t scale = fp8_scale<kFormat>(LargestFinite(x, count));
  *out++ = static_cast<std::uint8_t>(scale);
  const auto inverse = hn::Set(df, fp8_inverse(scale));
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) EncodeStep<kFormat>(x + i, inverse, out + i);
  for (; i < count; ++i) out[i] = fp8_from_float<kFormat>(x[i] * fp8_inverse(scale));
}

template <Fp8 kFormat>
void EncodeAs(const float* x, std::size_t count, std::uint8_t* out) {
  while (count > 0) {
    const std::size_t block = std::min(count, kFp8Block);
    EncodeBlock<kFormat>(x, block, out);
    x += block;
    out += fp8_bytes(block);
    count -= block;
  }
}

template <Fp8 kFormat>
void DecodeAs(const std::uint8_t* in, std::size_t count, float* out) {
  const DF df;
  while (count > 0) {
    const std::size_t block = std::min(count, kFp8Block);
    const float scale = fp8_multiplier(*in++);
    const auto multiplier = hn::Set(df, scale);
    std::size_t i = 0;
    for (; i + kLanes <= block; i += kLanes) DecodeStep<kFormat>(in + i, multiplier, out + i);
    for (; i < block; ++i) {
      const float value = float_from_fp8<kFormat>(in[i]);
      out[i] = is_finite(value) ? value * scale : value;
    }
    in += block;
    out += block;
    count -= block;
  }
}

void Encode(Fp8 format, const float* x, std::size_t count, std::byte* out) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(out);
  return format == Fp8::kE4M3 ? EncodeAs<Fp8::kE4M3>(x, count, bytes)
                              : EncodeAs<Fp8::kE5M2>(x, count, bytes);
}

void Decode(Fp8 format, const std::byte* in, std::size_t count, float* out) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(in);
  return format == Fp8::kE4M3 ? DecodeAs<Fp8::kE4M3>(bytes, count, out)
                              : DecodeAs<Fp8::kE5M2>(bytes, count, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(Encode);
HWY_EXPORT(Decode);

void fp8_encode(Fp8 format, const float* x, std::size_t count, std::byte* out) {
  THINWIRE_DISPATCH(Encode)(format, x, count, out);
}

void fp8_decode(Fp8 format, const std::byte* in, std::size_t count, float* out) {
  THINWIRE_DISPATCH(Decode)(format, in, count, out);
}

bool fp8_valid(const std::byte* in, std::size_t count) {
  for (std::size_t first = 0; first < count; first += kFp8Block, in += 1 + kFp8Block) {
    const auto scale = std::to_integer<std::uint32_t>(*in);
    if (scale == 0 || scale > kFp8MaxScale) return false;
  }
  return true;
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
