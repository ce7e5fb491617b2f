// The columns of a matrix [rows, columns], row-major, in groups of another order, and what they
// have in common. Thread-safe; allocates nothing. All SIMD targets give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire::kernels {

// Groups of columns: `order` has their numbers, group after group, of which each ends at one of
// `ends` there. A group [rows, its columns] is row-major, and one lies behind the other.
struct ColumnGroups {
  std::span<const std::int32_t> order;
  std::span<const std::int32_t> ends;
};

// out = the groups of the values, without less[i] of column order[i]; all of them have rows ·
// order.size() elements, below 2^31.
void take_columns(const float* values, std::size_t rows, const ColumnGroups& groups,
                  const float* less, float* out);

// The inverse: values = groups + more[column]. `places` and `widths` are memory for a number each
// of a column.
void put_columns(const float* in, std::size_t rows, const ColumnGroups& groups, const float* more,
                 std::span<std::int32_t> places, std::span<std::int32_t> widths, float* values);

// Of each column, over the rows 0, stride, 2 · stride, … in this order: the sum of its values and
// that of their squares.
void column_sums(const float* values, std::size_t rows, std::size_t columns, std::size_t stride,
                 double* sums, double* squares);

}  // namespace thinwire::kernels
