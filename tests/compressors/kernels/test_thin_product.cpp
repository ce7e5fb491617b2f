#include "thinwire/compressors/kernels/thin_product.h"

#include <gtest/gtest.h>

#include <vector>

#include "thinwire/common/text.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/compressors/kernels/thin_product_ref.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::kernels {
namespace {

TEST(ThinProducts, EqualTheReferenceOnEveryTarget) {
  for (const auto& [rows, cols] : {std::pair<std::size_t, std::size_t>{1, 1},
                                   {3, 50},
                                   {50, 3},
                                   {17, 33},
                                   {64, 128},
                                   {9, 77}}) {
    for (const std::size_t k : {std::size_t{16}, std::size_t{48}}) {
      const auto m = thinwire::testing::standard_normal(rows * cols, 1),
                 w = thinwire::testing::standard_normal(cols * k, 2),
                 p = thinwire::testing::standard_normal(rows * k, 3);
      std::vector<float> product(rows * k), of_rows(rows), of_columns(cols);
      ref::thin_multiply(m.data(), rows, cols, w.data(), k, product.data());
      auto less = m;
      ref::thin_subtract(p.data(), w.data(), rows, cols, k, less.data());
      ref::sums_of_squares(m.data(), rows, cols, of_rows.data(), of_columns.data());
      for (const auto& target : simd_targets()) {
        set_simd_target(target);
        SCOPED_TRACE(concat(target, " ", rows, "x", cols, " by ", k));
        std::vector<float> out(rows * k), out_rows(rows), out_columns(cols);
        thin_multiply(m.data(), rows, cols, w.data(), k, out.data());
        EXPECT_EQ(out, product);
        auto out_less = m;
        thin_subtract(p.data(), w.data(), rows, cols, k, out_less.data());
        EXPECT_EQ(out_less, less);
        sums_of_squares(m.data(), rows, cols, out_rows.data(), out_columns.data());
        EXPECT_EQ(out_rows, of_rows);
        EXPECT_EQ(out_columns, of_columns);
      }
      set_simd_target("");
    }
  }
}

}  // namespace
}  // namespace thinwire::kernels
