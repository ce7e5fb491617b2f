#include "thinwire/compressors/kernels/cast.h"

#include <array>

#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/fp8.h"

namespace thinwire::kernels {
namespace {

// Formats that are also dtypes of tensors.
template <DType kDType>
void encode_as(const float* values, std::size_t count, std::byte* out) {
  store_floats(kDType, out, 0, count, values, WriteMode::kAssign);
}
template <DType kDType>
void decode_as(const std::byte* in, std::size_t count, float* values) {
  load_floats(kDType, in, 0, count, values);
}

template <Fp8 kFormat>
void encode_fp8(const float* values, std::size_t count, std::byte* out) {
  fp8_encode(kFormat, values, count, out);
}
template <Fp8 kFormat>
void decode_fp8(const std::byte* in, std::size_t count, float* values) {
  fp8_decode(kFormat, in, count, values);
}

constexpr std::array kFormats = {
    CastFormat{"bf16", 2, 1, encode_as<DType::kBFloat16>, decode_as<DType::kBFloat16>, nullptr},
    CastFormat{"fp16", 2, 1, encode_as<DType::kFloat16>, decode_as<DType::kFloat16>, nullptr},
    CastFormat{"fp8_e4m3", 1, kFp8Block, encode_fp8<Fp8::kE4M3>, decode_fp8<Fp8::kE4M3>, fp8_valid},
    CastFormat{"fp8_e5m2", 1, kFp8Block, encode_fp8<Fp8::kE5M2>, decode_fp8<Fp8::kE5M2>, fp8_valid},
};

}  // namespace

std::span<const CastFormat> cast_formats() {
  return kFormats;
}

}  // namespace thinwire::kernels
