#include "thinwire/compressors/codecs/sparse_values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/float_view.h"
#include "thinwire/compressors/codecs/value_levels.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"

namespace thinwire {
namespace {

constexpr float kHalfMax = 65504.0f;
constexpr float kBfloatMax = 0x1.FEp127f;

float saturated(float value, float limit) {
  if (!kernels::is_finite(value)) return value;
  return std::clamp(value, -limit, limit);
}

}  // namespace

std::int64_t kept_count(double density, std::int64_t numel) {
  if (numel == 0) return 0;
  const auto count = static_cast<std::int64_t>(density * static_cast<double>(numel));
  return std::clamp<std::int64_t>(count, 1, numel);
}

std::string_view name_of(ValueType type) {
  switch (type) {
    case ValueType::kFloat32:
      return "fp32";
    case ValueType::kFloat16:
      return "fp16";
    case ValueType::kBFloat16:
      return "bf16";
    case ValueType::kCoded:
      return "coded";
  }
  return "unknown";
}

std::size_t size_of(ValueType type) {
  return type == ValueType::kFloat16 || type == ValueType::kBFloat16 ? 2 : 4;
}

std::size_t max_value_bytes(ValueType type, std::size_t count) {
  return type == ValueType::kCoded ? max_levels_bytes(count) : count * size_of(type);
}

std::size_t min_value_bytes(ValueType type, std::size_t count) {
  if (type != ValueType::kCoded) return count * size_of(type);
  // The number of parts, a level and the weights of its signs.
  return count > 0 ? sizeof(std::uint16_t) + 1 + sizeof(float) + 2 : 0;
}

void write_values(std::span<const float> values, ValueType type, std::byte* out) {
  THINWIRE_ASSERT(type != ValueType::kCoded);
  if (type == ValueType::kFloat32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  for (const float value : values) {
    const std::uint16_t narrow = type == ValueType::kFloat16
                                     ? kernels::half_from_float(saturated(value, kHalfMax))
                                     : kernels::bfloat_from_float(saturated(value, kBfloatMax));
    std::memcpy(out, &narrow, sizeof narrow);
    out += sizeof narrow;
  }
}

void read_values(const std::byte* in, ValueType type, std::span<float> values) {
  THINWIRE_ASSERT(type != ValueType::kCoded);
  if (type == ValueType::kFloat32) {
    std::memcpy(values.data(), in, values.size_bytes());
    return;
  }
  for (float& value : values) {
    std::uint16_t narrow;
    std::memcpy(&narrow, in, sizeof narrow);
    in += sizeof narrow;
    value = type == ValueType::kFloat16 ? kernels::float_from_half(narrow)
                                        : kernels::float_from_bfloat(narrow);
  }
}

float stored(float value, ValueType type) {
  if (type == ValueType::kCoded) return value;
  std::array<std::byte, sizeof(float)> bytes;
  write_values(std::span(&value, 1), type, bytes.data());
  read_values(bytes.data(), type, std::span(&value, 1));
  return value;
}

void store_as(ValueType type, std::span<float> values) {
  if (type == ValueType::kCoded) return round_to_levels(values);
  for (float& value : values) value = stored(value, type);
}

void scatter(std::span<const std::uint32_t> indices, std::span<const float> values,
             const TensorView& output, WriteMode mode) {
  if (mode == WriteMode::kAssign && output.numel > 0) std::memset(output.data, 0, output.bytes());
  for (std::size_t j = 0; j < indices.size(); ++j) {
    if (mode == WriteMode::kAssign) {
      kernels::ref::store(output.dtype, output.data, indices[j], values[j]);
    } else {
      kernels::ref::accumulate(output.dtype, output.data, indices[j], values[j]);
    }
  }
}

void poison(const TensorView& output) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t i = 0; i < output.numel; ++i) {
    kernels::ref::store(output.dtype, output.data, static_cast<std::size_t>(i), kNan);
  }
}

void poison(std::int64_t numel, SparseEntries& entries) {
  entries.indices.resize(static_cast<std::size_t>(numel));
  std::iota(entries.indices.begin(), entries.indices.end(), 0u);
  entries.values.assign(entries.indices.size(), std::numeric_limits<float>::quiet_NaN());
}

}  // namespace thinwire
