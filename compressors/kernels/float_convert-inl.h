// Conversions between float32 and the 16-bit floats in vectors, equal to half_math.h bit for bit.
// Included once per SIMD target.

#if defined(THINWIRE_COMPRESSORS_KERNELS_FLOAT_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_COMPRESSORS_KERNELS_FLOAT_CONVERT_INL_H_
#undef THINWIRE_COMPRESSORS_KERNELS_FLOAT_CONVERT_INL_H_
#else
#define THINWIRE_COMPRESSORS_KERNELS_FLOAT_CONVERT_INL_H_
#endif

#include <hwy/highway.h>

// The conversion instructions of x86 round and treat NaN exactly as half_math.h does.
#undef THINWIRE_HAS_F16C
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
#define THINWIRE_HAS_F16C 1
#else
#define THINWIRE_HAS_F16C 0
#endif

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class DF>
HWY_INLINE hn::Vec<DF> LoadHalf(DF df, const std::uint16_t* in) {
#if THINWIRE_HAS_F16C
  const hn::Rebind<hwy::float16_t, DF> d16;
  return hn::PromoteTo(df, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(in)));
#else
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<std::uint16_t, DF> d16;
  const auto half = hn::PromoteTo(du, hn::LoadU(d16, in));
  const auto magnitude = hn::And(half, hn::Set(du, 0x7FFFu));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(half, magnitude));
  const auto bias = hn::Set(du, 0x38000000u);
  const auto normal = hn::Add(hn::ShiftLeft<13>(magnitude), bias);
  const hn::RebindToSigned<DF> di;
  const auto tiny = hn::BitCast(
      du, hn::Mul(hn::ConvertTo(df, hn::BitCast(di, magnitude)), hn::Set(df, 0x1p-24f)));
  // Infinity and NaN need the bias once more; NaN becomes quiet.
  const auto is_special = hn::Gt(magnitude, hn::Set(du, 0x7BFFu));
  const auto quiet =
      hn::IfThenElseZero(hn::Gt(magnitude, hn::Set(du, 0x7C00u)), hn::Set(du, 0x400000u));
  const auto special = hn::Or(hn::Add(normal, bias), quiet);
  auto result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x400u)), tiny, normal);
  result = hn::IfThenElse(is_special, special, result);
  return hn::BitCast(df, hn::Or(result, sign));
#endif
}

template <class DF>
HWY_INLINE void StoreHalf(hn::Vec<DF> value, DF df, std::uint16_t* out) {
#if THINWIRE_HAS_F16C
  const hn::Rebind<hwy::float16_t, DF> d16;
  hn::StoreU(hn::DemoteTo(d16, value), d16, reinterpret_cast<hwy::float16_t*>(out));
#else
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<std::uint16_t, DF> d16;
  const auto bits = hn::BitCast(du, value);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
  const auto sign = hn::ShiftRight<16>(hn::Xor(bits, magnitude));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto rounded = hn::Add(hn::Add(magnitude, hn::Set(du, 0xFFFu)), odd);
  const auto normal = hn::ShiftRight<13>(hn::Sub(rounded, hn::Set(du, 0x38000000u)));
  const auto half = hn::Set(df, 0.5f);
  const auto tiny =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), half)), hn::BitCast(du, half));
  const auto nan =
      hn::Or(hn::Set(du, 0x7E00u), hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3FFu)));
  auto result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x38800000u)), tiny, normal);
  result =
      hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x477FEFFFu)), hn::Set(du, 0x7C00u), result);
  result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7F800000u)), nan, result);
  hn::StoreU(hn::TruncateTo(d16, hn::Or(result, sign)), d16, out);
#endif
}

template <class DF>
HWY_INLINE hn::Vec<DF> LoadBfloat(DF df, const std::uint16_t* in) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<std::uint16_t, DF> d16;
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, in))));
}

template <class DF>
HWY_INLINE void StoreBfloat(hn::Vec<DF> value, DF /*tag*/, std::uint16_t* out) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<std::uint16_t, DF> d16;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd);
  const auto is_nan = hn::Gt(hn::And(bits, hn::Set(du, 0x7FFFFFFFu)), hn::Set(du, 0x7F800000u));
  const auto result = hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(du, 0x400000u)), rounded);
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(result)), d16, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
