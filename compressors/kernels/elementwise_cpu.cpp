#include "thinwire/compressors/kernels/elementwise.h"

#include <algorithm>

#include "thinwire/compressors/kernels/elementwise_ref.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/kernels/elementwise_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/compressors/kernels/float_convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;

// One vector of elements of `kDType` from and to memory of any alignment.
template <DType kDType>
HWY_INLINE hn::Vec<DF> LoadElements(const std::byte* in) {
  const DF df;
  if constexpr (kDType == DType::kFloat32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(in));
  } else if constexpr (kDType == DType::kFloat16) {
    return LoadHalf(df, reinterpret_cast<const std::uint16_t*>(in));
  } else {
    return LoadBfloat(df, reinterpret_cast<const std::uint16_t*>(in));
  }
}

template <DType kDType>
HWY_INLINE void StoreElements(hn::Vec<DF> value, std::byte* out) {
  const DF df;
  if constexpr (kDType == DType::kFloat32) {
    hn::StoreU(value, df, reinterpret_cast<float*>(out));
  } else if constexpr (kDType == DType::kFloat16) {
    StoreHalf(value, df, reinterpret_cast<std::uint16_t*>(out));
  } else {
    StoreBfloat(value, df, reinterpret_cast<std::uint16_t*>(out));
  }
}

template <DType kDType>
void LoadFloats(const std::byte* data, std::size_t count, float* out) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(LoadElements<kDType>(data + i * size_of(kDType)), df, out + i);
  }
  for (; i < count; ++i) out[i] = ref::load(kDType, data, i);
}

template <DType kDType, WriteMode kMode>
void StoreFloats(std::byte* data, std::size_t count, const float* values) {
  const DF df;
  const std::size_t lanes = hn::Lanes(df);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    std::byte* at = data + i * size_of(kDType);
    auto value = hn::LoadU(df, values + i);
    if constexpr (kMode == WriteMode::kAccumulate) {
      value = hn::Add(LoadElements<kDType>(at), value);
    }
    StoreElements<kDType>(value, at);
  }
  for (; i < count; ++i) {
    if constexpr (kMode == WriteMode::kAssign) {
      ref::store(kDType, data, i, values[i]);
    } else {
      ref::accumulate(kDType, data, i, values[i]);
    }
  }
}

void LoadAny(DType dtype, const std::byte* data, std::size_t count, float* out) {
  switch (dtype) {
    case DType::kFloat32:
      return LoadFloats<DType::kFloat32>(data, count, out);
    case DType::kFloat16:
      return LoadFloats<DType::kFloat16>(data, count, out);
    case DType::kBFloat16:
      return LoadFloats<DType::kBFloat16>(data, count, out);
    case DType::kFloat64:
      for (std::size_t i = 0; i < count; ++i) out[i] = ref::load(dtype, data, i);
  }
}

template <WriteMode kMode>
void StoreAny(DType dtype, std::byte* data, std::size_t count, const float* values) {
  switch (dtype) {
    case DType::kFloat32:
      return StoreFloats<DType::kFloat32, kMode>(data, count, values);
    case DType::kFloat16:
      return StoreFloats<DType::kFloat16, kMode>(data, count, values);
    case DType::kBFloat16:
      return StoreFloats<DType::kBFloat16, kMode>(data, count, values);
    case DType::kFloat64:
      for (std::size_t i = 0; i < count; ++i) {
        if constexpr (kMode == WriteMode::kAssign) {
          ref::store(dtype, data, i, values[i]);
        } else {
          ref::accumulate(dtype, data, i, values[i]);
        }
      }
  }
}

void Assign(DType dtype, std::byte* data, std::size_t count, const float* values) {
  StoreAny<WriteMode::kAssign>(dtype, data, count, values);
}
void Accumulate(DType dtype, std::byte* data, std::size_t count, const float* values) {
  StoreAny<WriteMode::kAccumulate>(dtype, data, count, values);
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::kernels {

HWY_EXPORT(LoadAny);
HWY_EXPORT(Assign);
HWY_EXPORT(Accumulate);

void load_floats(DType dtype, const void* data, std::size_t first, std::size_t count, float* out) {
  const auto* at = static_cast<const std::byte*>(data) + first * size_of(dtype);
  THINWIRE_DISPATCH(LoadAny)(dtype, at, count, out);
}

void store_floats(DType dtype, void* data, std::size_t first, std::size_t count,
                  const float* values, WriteMode mode) {
  auto* at = static_cast<std::byte*>(data) + first * size_of(dtype);
  if (mode == WriteMode::kAssign) {
    THINWIRE_DISPATCH(Assign)(dtype, at, count, values);
  } else {
    THINWIRE_DISPATCH(Accumulate)(dtype, at, count, values);
  }
}

void add_elements(DType dtype, void* data, const void* addends, std::size_t count) {
  if (dtype == DType::kFloat64) {  // float32 would round the addend
    for (std::size_t i = 0; i < count; ++i) {
      double sum, addend;
      std::memcpy(&sum, static_cast<std::byte*>(data) + i * sizeof sum, sizeof sum);
      std::memcpy(&addend, static_cast<const std::byte*>(addends) + i * sizeof sum, sizeof sum);
      sum += addend;
      std::memcpy(static_cast<std::byte*>(data) + i * sizeof sum, &sum, sizeof sum);
    }
    return;
  }
  float block[kConvertBlock];
  for (std::size_t first = 0; first < count; first += kConvertBlock) {
    const std::size_t elements = std::min(kConvertBlock, count - first);
    load_floats(dtype, addends, first, elements, block);
    store_floats(dtype, data, first, elements, block, WriteMode::kAccumulate);
  }
}

}  // namespace thinwire::kernels
#endif  // HWY_ONCE
