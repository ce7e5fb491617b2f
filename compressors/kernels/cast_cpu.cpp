#include "thinwire/compressors/kernels/cast.h"

#include <array>

#include "thinwire/compressors/kernels/elementwise.h"

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

constexpr std::array kFormats = {
    CastFormat{"bf16", 2, encode_as<DType::kBFloat16>, decode_as<DType::kBFloat16>},
    CastFormat{"fp16", 2, encode_as<DType::kFloat16>, decode_as<DType::kFloat16>},
};

}  // namespace

std::span<const CastFormat> cast_formats() {
  return kFormats;
}

}  // namespace thinwire::kernels
