#include "thinwire/compressors/kernels/columns.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "thinwire/common/text.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::kernels {
namespace {

// Groups of one column, of some and of many, in no order.
struct Grouped {
  explicit Grouped(std::size_t columns) {
    for (std::size_t j = 0; j < columns; ++j) {
      order.push_back(static_cast<std::int32_t>(j * 7 % columns));
    }
    for (const std::size_t share : {std::size_t{1}, columns / 9 + 1, columns / 2, columns}) {
      const auto end = static_cast<std::int32_t>(std::min(share, columns));
      if (ends.empty() || end > ends.back()) ends.push_back(end);
    }
  }
  ColumnGroups groups() const { return {order, ends}; }
  std::vector<std::int32_t> order, ends;
};

TEST(Columns, AreTakenAndPutBackOnEveryTarget) {
  for (const auto& [rows, columns] :
       {std::pair<std::size_t, std::size_t>{1, 1}, {5, 9}, {3, 16}, {7, 50}, {2, 300}}) {
    const Grouped grouped(columns);
    const auto values = thinwire::testing::standard_normal(rows * columns, 1);
    const auto less = thinwire::testing::standard_normal(columns, 2);
    std::vector<float> expected;
    std::int32_t first = 0;
    for (const std::int32_t end : grouped.ends) {
      for (std::size_t i = 0; i < rows; ++i) {
        for (std::int32_t c = first; c < end; ++c) {
          const auto at = static_cast<std::size_t>(c);
          const auto column = static_cast<std::size_t>(grouped.order[at]);
          expected.push_back(values[i * columns + column] - less[at]);
        }
      }
      first = end;
    }
    const std::vector<float> more(columns, 0.5f);
    for (const auto& target : simd_targets()) {
      set_simd_target(target);
      SCOPED_TRACE(concat(target, " ", rows, "x", columns));
      std::vector<float> taken(values.size()), back(values.size());
      take_columns(values.data(), rows, grouped.groups(), less.data(), taken.data());
      EXPECT_EQ(taken, expected);
      const std::vector<float> nothing(columns);
      take_columns(values.data(), rows, grouped.groups(), nothing.data(), taken.data());
      std::vector<std::int32_t> places(columns), widths(columns);
      put_columns(taken.data(), rows, grouped.groups(), more.data(), places, widths, back.data());
      for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(back[i], values[i] + 0.5f);
    }
    set_simd_target("");
  }
}

TEST(Columns, SumsAreOfEveryStridethRow) {
  constexpr std::size_t kRows = 11, kColumns = 21, kStride = 3;
  const auto values = thinwire::testing::standard_normal(kRows * kColumns, 1);
  for (const auto& target : simd_targets()) {
    set_simd_target(target);
    std::vector<double> sums(kColumns, 7), squares(kColumns, 7);
    column_sums(values.data(), kRows, kColumns, kStride, sums.data(), squares.data());
    for (std::size_t j = 0; j < kColumns; ++j) {
      double sum = 0, square = 0;
      for (std::size_t i = 0; i < kRows; i += kStride) {
        const double value = double{values[i * kColumns + j]};
        sum += value;
        square += value * value;
      }
      EXPECT_EQ(sums[j], sum) << target;
      EXPECT_EQ(squares[j], square) << target;
    }
  }
  set_simd_target("");
}

}  // namespace
}  // namespace thinwire::kernels
