#include "thinwire/compressors/kernels/sign_planes.h"

#include <bit>

#include "thinwire/compressors/kernels/sign_planes_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/sign_planes_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/compressors/kernels/philox-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
#if HWY_TARGET == HWY_SCALAR  // one lane: the reference is the kernel

void OnebitEncode(const float* x, std::size_t count, std::byte* out) {
  ref::onebit_encode(x, count, out);
}
void OnebitDecode(const std::byte* in, std::size_t count, float* out) {
  ref::onebit_decode(in, count, out);
}
void OnebitSubtract(const std::byte* in, std::size_t count, float* values) {
  ref::onebit_subtract(in, count, values);
}
void TerngradEncode(const float* x, std::size_t count, float clip, const PhiloxStream& stream,
                    std::uint64_t first, std::byte* out) {
  ref::terngrad_encode(x, count, clip, stream, first, out);
}
void TerngradDecode(const std::byte* in, std::size_t count, float* out) {
  ref::terngrad_decode(in, count, out);
}

#else

namespace hn = hwy::HWY_NAMESPACE;

// Everything goes in steps of 16 elements, as one to four registers.
using D = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<D>;
using DU = hn::RebindToUnsigned<D>;
constexpr std::size_t kStep = 16;
constexpr std::size_t kWidth = hn::MaxLanes(D());
constexpr std::size_t kParts = kStep / kWidth;
static_assert(kParts * kWidth == kStep, "a step must be whole registers");
constexpr std::size_t kPrefetchBytes = 4096;

// Sixteen bits of a plane, from the masks of a step.
template <class Mask>
HWY_INLINE void StoreMasks(const Mask* masks, std::byte* out) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(out);
  if constexpr (kWidth >= 8) {
    for (std::size_t p = 0; p < kParts; ++p)
      hn::StoreMaskBits(D(), masks[p], bytes + p * kWidth / 8);
  } else {
    std::uint32_t bits = 0;
    for (std::size_t p = 0; p < kParts; ++p) {
      std::uint8_t part = 0;
      hn::StoreMaskBits(D(), masks[p], &part);
      bits |= std::uint32_t{part} << (p * kWidth);
    }
    bytes[0] = static_cast<std::uint8_t>(bits);
    bytes[1] = static_cast<std::uint8_t>(bits >> 8);
  }
}

HWY_INLINE hn::Mask<D> LoadMask(const std::byte* in, std::size_t part) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(in);
  if constexpr (kWidth >= 8) {
    return hn::LoadMaskBits(D(), bytes + part * kWidth / 8);
  } else {
    const std::size_t bit = part * kWidth;
    const auto shifted = static_cast<std::uint8_t>(bytes[bit / 8] >> (bit % 8));
    return hn::LoadMaskBits(D(), &shifted);
  }
}

// Asks for what the next bucket will read, a step at a time, while this one is computed: hardware
// prefetchers stop at pages, which are as large as a usual bucket. Past the end of the tensor the
// processor ignores it.
HWY_INLINE void PrefetchStep(const float* x) {
  hwy::Prefetch(reinterpret_cast<const void*>(std::bit_cast<std::uintptr_t>(x) + kPrefetchBytes));
}

template <class Vector>
HWY_INLINE float Fold(const Vector* parts) {
  std::array<float, kSumLanes> lanes;
  for (std::size_t p = 0; p < kParts; ++p) hn::StoreU(parts[p], D(), lanes.data() + p * kWidth);
  return folded(lanes.data());
}

struct OnebitState {
  hn::Vec<D> positive[kParts], negative[kParts];
  std::size_t negatives = 0;
};

HWY_INLINE void OnebitStep(const float* x, OnebitState& state, std::byte* plane) {
  const D d;
  hn::Mask<D> below[kParts];
  for (std::size_t p = 0; p < kParts; ++p) {
    const auto v = hn::LoadU(d, x + p * kWidth);
    below[p] = hn::Lt(v, hn::Zero(d));
    state.negative[p] = hn::Add(state.negative[p], hn::IfThenElseZero(below[p], v));
    state.positive[p] = hn::Add(state.positive[p], hn::IfThenZeroElse(below[p], v));
    state.negatives += hn::CountTrue(d, below[p]);
  }
  StoreMasks(below, plane);
}

void OnebitEncode(const float* x, std::size_t count, std::byte* out) {
  OnebitState state;
  for (std::size_t p = 0; p < kParts; ++p) state.positive[p] = state.negative[p] = hn::Zero(D());
  std::byte* plane = out + 8;
  std::size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    PrefetchStep(x + i);
    OnebitStep(x + i, state, plane + i / 8);
  }
  if (i < count) {  // zeros after the end add nothing to any sum
    std::array<float, kStep> rest{};
    std::array<std::byte, 2> bits;
    std::memcpy(rest.data(), x + i, (count - i) * sizeof(float));
    OnebitStep(rest.data(), state, bits.data());
    std::memcpy(plane + i / 8, bits.data(), plane_bytes(count - i));
  }
  ref::write_means(x, count, {Fold(state.positive), Fold(state.negative), state.negatives}, out);
}

// put(tag, value, place) for all values, in vectors and then one by one.
template <typename Store>
HWY_INLINE void OnebitValues(const std::byte* in, std::size_t count, float* out, const Store& put) {
  const D d;
  std::array<float, 2> means;
  std::memcpy(means.data(), in, sizeof means);
  const auto positive = hn::Set(d, means[0]), negative = hn::Set(d, means[1]);
  const std::byte* plane = in + 8;
  std::size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    for (std::size_t p = 0; p < kParts; ++p) {
      put(d, hn::IfThenElse(LoadMask(plane + i / 8, p), negative, positive), out + i + p * kWidth);
    }
  }
  const hn::CappedTag<float, 1> one;
  for (; i < count; ++i) put(one, hn::Set(one, means[ref::get_bit(plane, i)]), out + i);
}

void OnebitDecode(const std::byte* in, std::size_t count, float* out) {
  OnebitValues(in, count, out,
               [](auto d, auto value, float* at) HWY_ATTR { hn::StoreU(value, d, at); });
}

void OnebitSubtract(const std::byte* in, std::size_t count, float* values) {
  OnebitValues(in, count, values, [](auto d, auto value, float* at) HWY_ATTR {
    hn::StoreU(hn::Sub(hn::LoadU(d, at), value), d, at);
  });
}

// Bits of the largest magnitude; not-finite values are larger than all others.
std::uint32_t LargestKey(const float* x, std::size_t count) {
  const D d;
  const DI di;
  const auto magnitude = hn::Set(di, 0x7FFFFFFF);
  auto a = hn::Zero(di), b = a, c = a, e = a;
  const auto key = [&](std::size_t at) HWY_ATTR {
    return hn::And(hn::BitCast(di, hn::LoadU(d, x + at)), magnitude);
  };
  std::size_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
    a = hn::Max(a, key(i));
    b = hn::Max(b, key(i + kWidth));
    c = hn::Max(c, key(i + 2 * kWidth));
    e = hn::Max(e, key(i + 3 * kWidth));
  }
  a = hn::Max(hn::Max(a, b), hn::Max(c, e));
  auto largest = static_cast<std::uint32_t>(hn::GetLane(hn::MaxOfLanes(di, a)));
  for (; i < count; ++i) largest = std::max(largest, bits_of(x[i]) & 0x7FFFFFFFu);
  return largest;
}

HWY_INLINE void SquareStep(const float* x, float pre, float inverse, hn::Vec<D>* sums) {
  const D d;
  for (std::size_t p = 0; p < kParts; ++p) {
    const auto v = hn::LoadU(d, x + p * kWidth);
    const auto y = hn::Mul(hn::Mul(v, hn::Set(d, pre)), hn::Set(d, inverse));
    sums[p] = hn::Add(sums[p], hn::Mul(y, y));
  }
}

float SumOfSquares(const float* x, std::size_t count, float pre, float inverse) {
  hn::Vec<D> sums[kParts];
  for (auto& sum : sums) sum = hn::Zero(D());
  std::size_t i = 0;
  for (; i + kStep <= count; i += kStep) SquareStep(x + i, pre, inverse, sums);
  if (i < count) {
    std::array<float, kStep> rest{};
    std::memcpy(rest.data(), x + i, (count - i) * sizeof(float));
    SquareStep(rest.data(), pre, inverse, sums);
  }
  return Fold(sums);
}

// `random`: the four words of the step's elements. `kLift`: the bucket needs scale.pre.
template <bool kLift>
HWY_INLINE void TernStep(const float* x, const TernScale& scale, const std::uint32_t* random,
                         std::byte* sent, std::byte* signs) {
  const D d;
  const DI di;
  const DU du;
  const hn::Repartition<std::uint8_t, D> d8;
  // Lane j of a 128-bit block that holds four words gets bytes j, j+1, j+2 of word `part`.
  HWY_ALIGN static constexpr std::uint8_t kTurn[64] = {
      2,  1,  0,  0x80, 3,  2,  1,  0x80, 0,  3,  2,  0x80, 1,  0,  3,  0x80,
      6,  5,  4,  0x80, 7,  6,  5,  0x80, 4,  7,  6,  0x80, 5,  4,  7,  0x80,
      10, 9,  8,  0x80, 11, 10, 9,  0x80, 8,  11, 10, 0x80, 9,  8,  11, 0x80,
      14, 13, 12, 0x80, 15, 14, 13, 0x80, 12, 15, 14, 0x80, 13, 12, 15, 0x80};
  const auto words = hn::BitCast(d8, hn::LoadDup128(du, random));
  hn::Mask<D> hits[kParts], negative[kParts];
  for (std::size_t p = 0; p < kParts; ++p) {
    const auto v = hn::LoadU(d, x + p * kWidth);
    const auto turn = hn::Load(d8, kTurn + p * kWidth * 4);
    const auto integer = hn::BitCast(di, hn::TableLookupBytesOr0(words, turn));
    auto magnitude = hn::Abs(v);
    if constexpr (kLift) magnitude = hn::Mul(magnitude, hn::Set(d, scale.pre));
    hits[p] = hn::Lt(hn::ConvertTo(d, integer), hn::Mul(magnitude, hn::Set(d, scale.inverse)));
    negative[p] = hn::RebindMask(d, hn::Lt(hn::BitCast(di, v), hn::Zero(di)));
  }
  StoreMasks(hits, sent);
  StoreMasks(negative, signs);
}

template <bool kLift>
void TernBucket(const float* x, std::size_t count, const TernScale& scale,
                const PhiloxStream& stream, std::uint64_t first, std::byte* sent,
                std::byte* signs) {
  constexpr std::size_t kBatch = 512;
  HWY_ALIGN std::uint32_t random[kBatch / 4];
  for (std::size_t base = 0; base < count; base += kBatch) {
    const std::size_t n = std::min(kBatch, count - base);
    const std::size_t blocks = (n + 127) / 128 * 8;
    PhiloxBlocks(stream, (first + base) / 16, blocks, random);
    std::size_t i = 0;
    for (; i + kStep <= n; i += kStep) {
      const std::size_t at = base + i;
      PrefetchStep(x + at);
      TernStep<kLift>(x + at, scale, random + i / 4, sent + at / 8, signs + at / 8);
    }
    if (i < n) {
      std::array<float, kStep> rest{};
      std::array<std::byte, 2> hits, negative;
      std::memcpy(rest.data(), x + base + i, (n - i) * sizeof(float));
      TernStep<kLift>(rest.data(), scale, random + i / 4, hits.data(), negative.data());
      std::memcpy(sent + (base + i) / 8, hits.data(), plane_bytes(n - i));
      std::memcpy(signs + (base + i) / 8, negative.data(), plane_bytes(n - i));
    }
  }
}

void TerngradEncode(const float* x, std::size_t count, float clip, const PhiloxStream& stream,
                    std::uint64_t first, std::byte* out) {
  const std::uint32_t key = LargestKey(x, count);
  if (key == 0 || key >= kFloatInfinityBits) {
    std::memset(out, 0, terngrad_bytes(count));
    if (key != 0) std::memcpy(out, &kFloatNanBits, 4);
    return;
  }
  const float largest = float_of(key);
  float bound = largest;
  if (clip > 0) {
    const float pre = tern_lift(largest);
    const float squares = SumOfSquares(x, count, pre, 1.0f / (largest * pre));
    bound = tern_clip(clip, largest, squares, count);
  }
  const TernScale scale = tern_scale(bound, largest);
  std::memcpy(out, &scale.scale, 4);
  std::byte* sent = out + 4;
  std::byte* signs = sent + plane_bytes(count);
  if (scale.pre == 1.0f) {
    TernBucket<false>(x, count, scale, stream, first, sent, signs);
  } else {
    TernBucket<true>(x, count, scale, stream, first, sent, signs);
  }
}

void TerngradDecode(const std::byte* in, std::size_t count, float* out) {
  const D d;
  float scale;
  std::memcpy(&scale, in, 4);
  if (!is_finite(scale)) {
    for (std::size_t i = 0; i < count; ++i) out[i] = float_of(kFloatNanBits);
    return;
  }
  const auto positive = hn::Set(d, scale), negative = hn::Set(d, -scale);
  const std::byte* sent = in + 4;
  const std::byte* signs = sent + plane_bytes(count);
  std::size_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    for (std::size_t p = 0; p < kParts; ++p) {
      const auto value = hn::IfThenElse(LoadMask(signs + i / 8, p), negative, positive);
      hn::StoreU(hn::IfThenElseZero(LoadMask(sent + i / 8, p), value), d, out + i + p * kWidth);
    }
  }
  for (; i < count; ++i) {
    out[i] = !ref::get_bit(sent, i) ? 0.0f : ref::get_bit(signs, i) ? -scale : scale;
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(OnebitEncode);
HWY_EXPORT(OnebitDecode);
HWY_EXPORT(OnebitSubtract);
HWY_EXPORT(TerngradEncode);
HWY_EXPORT(TerngradDecode);

void onebit_encode(const float* x, std::size_t count, std::byte* out) {
  THINWIRE_DISPATCH(OnebitEncode)(x, count, out);
}

void onebit_decode(const std::byte* in, std::size_t count, float* out) {
  THINWIRE_DISPATCH(OnebitDecode)(in, count, out);
}

void onebit_subtract(const std::byte* in, std::size_t count, float* values) {
  THINWIRE_DISPATCH(OnebitSubtract)(in, count, values);
}

void terngrad_encode(const float* x, std::size_t count, float clip, const PhiloxStream& stream,
                     std::uint64_t first, std::byte* out) {
  THINWIRE_DISPATCH(TerngradEncode)(x, count, clip, stream, first, out);
}

void terngrad_decode(const std::byte* in, std::size_t count, float* out) {
  THINWIRE_DISPATCH(TerngradDecode)(in, count, out);
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
