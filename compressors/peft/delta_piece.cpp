#include "thinwire/compressors/peft/delta_piece.h"

#include <cstring>

#include "thinwire/compressors/peft/float_bits.h"

namespace thinwire::peft {
namespace {

template <DType kType>
void convert(const std::byte* data, std::int64_t begin, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = detail::load_float(data, begin + static_cast<std::int64_t>(i), kType);
}

void load(const ConstTensorView& view, std::int64_t begin, std::span<float> out) {
  const auto* data = static_cast<const std::byte*>(view.data);
  switch (view.dtype) {
    case DType::kFloat32:
      return convert<DType::kFloat32>(data, begin, out);
    case DType::kFloat16:
      return convert<DType::kFloat16>(data, begin, out);
    case DType::kBFloat16:
      return convert<DType::kBFloat16>(data, begin, out);
    case DType::kFloat64:
      return convert<DType::kFloat64>(data, begin, out);
  }
}

double load_double(const ConstTensorView& view, std::int64_t i) {
  if (view.dtype != DType::kFloat64)
    return detail::load_float(static_cast<const std::byte*>(view.data), i, view.dtype);
  double value;
  std::memcpy(&value, static_cast<const std::byte*>(view.data) + 8 * i, 8);
  return value;
}

}  // namespace

void load_delta(const DeltaPiece& piece, std::int64_t begin, std::span<float> out) {
  const bool has_base = piece.base.data != nullptr;
  if (piece.tuned.dtype == DType::kFloat64 || (has_base && piece.base.dtype == DType::kFloat64)) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto at = begin + static_cast<std::int64_t>(i);
      const double base = has_base ? load_double(piece.base, at) : piece.base_constant;
      out[i] = static_cast<float>(load_double(piece.tuned, at) - base);
    }
    return;
  }
  load(piece.tuned, begin, out);
  if (has_base) {
    std::array<float, 1024> base;
    for (std::size_t first = 0; first < out.size(); first += base.size()) {
      const auto n = std::min(base.size(), out.size() - first);
      load(piece.base, begin + static_cast<std::int64_t>(first), std::span(base).first(n));
      for (std::size_t i = 0; i < n; ++i) out[first + i] -= base[i];
    }
  } else if (piece.base_constant != 0.0f) {
    for (float& value : out) value -= piece.base_constant;
  }
}

}  // namespace thinwire::peft
