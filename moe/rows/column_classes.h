// What the columns of a message of rows have in common: their scale, by which they share tables of
// the entropy coder, and their mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/kernels/columns.h"

namespace thinwire::moe {

// Scales are half octaves; what is much below the largest one shares the last class.
inline constexpr std::size_t kMostClasses = 24;

// Columns in the order in which they are coded, class after class.
struct ColumnClasses {
  std::vector<std::int32_t> order;
  std::vector<std::int32_t> ends;  // of each class, in `order`
  kernels::ColumnGroups groups() const { return {order, ends}; }
};
ColumnClasses classes_of(std::span<const std::int8_t> scales);

// The number of half octaves of a scale; the least one for zero.
std::int8_t scale_code(double scale);

// What a receiver is told of each column.
struct ColumnCodes {
  explicit ColumnCodes(std::size_t columns) : scale(columns, 0), mean(columns, 0) {}
  // Of [rows, columns] finite values, by a sample of the rows.
  ColumnCodes(std::span<const float> values, std::size_t columns);

  float mean_of(std::size_t column) const;

  std::vector<std::int8_t> scale, mean;  // half octaves; eighths of the scale
};

}  // namespace thinwire::moe
