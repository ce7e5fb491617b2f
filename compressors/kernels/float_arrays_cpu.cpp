#include "thinwire/compressors/kernels/float_arrays.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/float_arrays_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;

bool AllFinite(const float* x, std::size_t n) {
  const DF df;
  const hn::RebindToSigned<DF> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto magnitude = hn::Set(d, 0x7FFFFFFF);
  const auto key = [&](std::size_t at) HWY_ATTR {
    return hn::And(hn::BitCast(d, hn::LoadU(df, x + at)), magnitude);
  };
  const auto finite = hn::Set(d, 0x7F7FFFFF);
  std::size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto largest =
        hn::Max(hn::Max(key(i), key(i + lanes)), hn::Max(key(i + 2 * lanes), key(i + 3 * lanes)));
    if (!hn::AllFalse(d, hn::Gt(largest, finite))) return false;
  }
  for (; i < n; ++i) {
    if ((std::bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFu) > 0x7F7FFFFFu) return false;
  }
  return true;
}

bool AddScaled(const float* a, const float* b, float factor, float* out, std::size_t n) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const std::size_t lanes = hn::Lanes(d);
  const auto factors = hn::Set(d, factor);
  const auto magnitude = hn::Set(di, 0x7FFFFFFF);
  auto largest = hn::Zero(di);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto sum = hn::Add(hn::LoadU(d, a + i), hn::Mul(factors, hn::LoadU(d, b + i)));
    hn::StoreU(sum, d, out + i);
    largest = hn::Max(largest, hn::And(hn::BitCast(di, sum), magnitude));
  }
  const std::size_t tail = i;
  for (; i < n; ++i) out[i] = a[i] + factor * b[i];
  return hn::AllFalse(di, hn::Gt(largest, hn::Set(di, 0x7F7FFFFF))) &&
         AllFinite(out + tail, n - tail);
}

using DGathered = hn::CappedTag<float, 16>;

void Gather(const float* array, const std::uint32_t* places, std::size_t n, float* out) {
  const DGathered d;
  const hn::RebindToSigned<DGathered> di;
  const auto* const at = reinterpret_cast<const std::int32_t*>(places);
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    hn::StoreU(hn::GatherIndex(d, array, hn::LoadU(di, at + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = array[places[i]];
}

void ScatterScaled(const float* a, const float* b, float factor, const std::uint32_t* places,
                   std::size_t n, float* array) {
  const DGathered d;
  const hn::RebindToSigned<DGathered> di;
  const auto* const at = reinterpret_cast<const std::int32_t*>(places);
  const auto factors = hn::Set(d, factor);
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    auto value = hn::LoadU(d, a + i);
    if (b) value = hn::Add(value, hn::Mul(factors, hn::LoadU(d, b + i)));
    hn::ScatterIndex(value, d, array, hn::LoadU(di, at + i));
  }
  for (; i < n; ++i) array[places[i]] = b ? a[i] + factor * b[i] : a[i];
}

// values[i] = op(values[i]); op takes a tag and a vector.
template <typename Op>
HWY_INLINE void Replace(float* values, std::size_t n, const Op& op) {
  const DF d;
  const hn::CappedTag<float, 1> one;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(op(d, hn::LoadU(d, values + i)), d, values + i);
  for (; i < n; ++i) hn::StoreU(op(one, hn::LoadU(one, values + i)), one, values + i);
}

void Divide(float* values, float divisor, std::size_t n) {
  Replace(values, n,
          [=](auto d, auto value) HWY_ATTR { return hn::Div(value, hn::Set(d, divisor)); });
}

void Multiply(float* values, float factor, std::size_t n) {
  Replace(values, n,
          [=](auto d, auto value) HWY_ATTR { return hn::Mul(value, hn::Set(d, factor)); });
}

void CopyPastCache(const float* values, std::size_t n, float* out) {
  const DF d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  const std::size_t bytes = lanes * sizeof(float);
  for (; i < n && std::bit_cast<std::uintptr_t>(out + i) % bytes != 0; ++i) out[i] = values[i];
  for (; i + lanes <= n; i += lanes) hn::Stream(hn::LoadU(d, values + i), d, out + i);
  for (; i < n; ++i) out[i] = values[i];
  hwy::FlushStream();
}

}  // namespace thinwire::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(AllFinite);
HWY_EXPORT(AddScaled);
HWY_EXPORT(Gather);
HWY_EXPORT(ScatterScaled);
HWY_EXPORT(Divide);
HWY_EXPORT(Multiply);
HWY_EXPORT(CopyPastCache);

bool all_finite(std::span<const float> values) {
  return THINWIRE_DISPATCH(AllFinite)(values.data(), values.size());
}

bool add_scaled(const float* a, const float* b, float factor, std::span<float> out) {
  return THINWIRE_DISPATCH(AddScaled)(a, b, factor, out.data(), out.size());
}

void gather(const float* array, std::span<const std::uint32_t> places, float* out) {
  THINWIRE_DISPATCH(Gather)(array, places.data(), places.size(), out);
}

void scatter_scaled(const float* a, const float* b, float factor,
                    std::span<const std::uint32_t> places, float* array) {
  THINWIRE_DISPATCH(ScatterScaled)(a, b, factor, places.data(), places.size(), array);
}

void subtract(std::span<float> values, const float* less) {
  add_scaled(values.data(), less, -1, values);
}

void copy_past_cache(std::span<const float> values, float* out) {
  // What is shorter leaves room in a cache for the model's other layers.
  constexpr std::size_t kLong = 4096;
  if (values.size() < kLong) {
    std::ranges::copy(values, out);
  } else {
    THINWIRE_DISPATCH(CopyPastCache)(values.data(), values.size(), out);
  }
}

void divide(std::span<float> values, float divisor) {
  // Both round the same exact quotient where the reciprocal is exact; a product is faster.
  int exponent = 0;
  if (std::frexp(divisor, &exponent) == 0.5f && std::abs(exponent) < 100) {
    THINWIRE_DISPATCH(Multiply)(values.data(), 1 / divisor, values.size());
  } else {
    THINWIRE_DISPATCH(Divide)(values.data(), divisor, values.size());
  }
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
