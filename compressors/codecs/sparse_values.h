// What the sparse codecs share: how many entries a density keeps and how kept values are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// max(1, int(density · numel)), 0 for an empty tensor. The product is one multiplication in double
// precision, so the count is that of `int(density * n)` in Python.
std::int64_t kept_count(double density, std::int64_t numel);

// Largest tensor of the sparse codecs: indices are 32 bits wide.
inline constexpr std::int64_t kMaxSparseNumel = 0xFFFFFFFF;

std::string_view name_of(ValueType type);
// Of one value; of coded ones, which share their bytes, what one takes alone.
std::size_t size_of(ValueType type);
// Most bytes that so many values take, and the fewest.
std::size_t max_value_bytes(ValueType type, std::size_t count);
std::size_t min_value_bytes(ValueType type, std::size_t count);

// Stores values that are not coded one after the other; finite values beyond the type's range
// become its largest finite value, so that only what was not finite decodes to something that is
// not.
void write_values(std::span<const float> values, ValueType type, std::byte* out);
void read_values(const std::byte* in, ValueType type, std::span<float> values);
// What read_values() gives back for a value. Coded values count as exact: what rounding them loses
// is little beside what is not kept.
float stored(float value, ValueType type);

// Makes of all values what they are once they have travelled as this type.
void store_as(ValueType type, std::span<float> values);

// output[indices[j]] = or += values[j]; with kAssign all other elements become zero.
void scatter(std::span<const std::uint32_t> indices, std::span<const float> values,
             const TensorView& output, WriteMode mode);

}  // namespace thinwire
