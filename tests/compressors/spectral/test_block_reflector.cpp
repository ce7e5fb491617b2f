#include "thinwire/compressors/spectral/block_reflector.h"

#include <gtest/gtest.h>

#include "spectral_fixture.h"
#include "thinwire/common/text.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::spectral {
namespace {

using testing::distance;
using testing::energy;

std::vector<float> orthonormal(std::size_t n, std::size_t k, unsigned seed) {
  auto columns = thinwire::testing::standard_normal(n * k, seed);
  kernels::orthogonalize(columns.data(), n, k);
  return columns;
}

std::vector<float> identity(std::size_t n) {
  std::vector<float> m(n * n);
  for (std::size_t i = 0; i < n; ++i) m[i * n + i] = 1;
  return m;
}

// Q, by turning the identity: Q I of one side.
std::vector<float> matrix_of(const BlockReflector& q, std::size_t n) {
  auto m = identity(n);
  turn(q, {}, Direction::kOutOf, n, n, m);
  return m;
}

TEST(BlockReflector, IsOrthogonalAndBeginsWithTheGivenColumns) {
  for (const auto& [n, k] :
       {std::pair<std::size_t, std::size_t>{1, 1}, {5, 5}, {16, 16}, {40, 3}, {70, 17}}) {
    SCOPED_TRACE(concat(n, " by ", k));
    auto columns = orthonormal(n, k, 7);
    const auto given = columns;
    const BlockReflector q(columns, n, k);
    const auto m = matrix_of(q, n);
    for (std::size_t c = 0; c < k; ++c) {
      const bool negated = columns[c * n] != given[c * n];
      for (std::size_t i = 0; i < n; ++i) {
        EXPECT_NEAR(m[i * n + c], columns[c * n + i], 1e-6);
        EXPECT_EQ(columns[c * n + i], negated ? -given[c * n + i] : given[c * n + i]);
      }
    }
    // Qᵀ Q = I
    auto product = m;
    turn(q, {}, Direction::kInto, n, n, product);
    EXPECT_LT(distance(product, identity(n)), 2e-6);
  }
}

// The first coordinates themselves are directions, too: nothing is divided by zero.
TEST(BlockReflector, TakesTheAxes) {
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> columns(20 * 4);
    for (std::size_t c = 0; c < 4; ++c) columns[c * 20 + c] = sign;
    const BlockReflector q(columns, 20, 4);
    auto product = matrix_of(q, 20);
    turn(q, {}, Direction::kInto, 20, 20, product);
    EXPECT_EQ(distance(product, identity(20)), 0);
  }
}

TEST(BlockReflector, TurnsBothSidesAndBack) {
  const std::size_t rows = 37, cols = 90;
  auto left_columns = orthonormal(rows, 9, 1), right_columns = orthonormal(cols, 20, 2);
  const BlockReflector left(left_columns, rows, 9), right(right_columns, cols, 20);
  const auto given = thinwire::testing::standard_normal(rows * cols, 3);
  auto m = given;
  turn(left, right, Direction::kInto, rows, cols, m);
  // Lᵀ M R by the matrices themselves.
  const auto l = matrix_of(left, rows), r = matrix_of(right, cols);
  std::vector<float> half(rows * cols), whole(rows * cols);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < rows; ++k) sum += double{l[k * rows + i]} * given[k * cols + j];
      half[i * cols + j] = static_cast<float>(sum);
    }
  }
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < cols; ++k) sum += double{half[i * cols + k]} * r[k * cols + j];
      whole[i * cols + j] = static_cast<float>(sum);
    }
  }
  EXPECT_LT(distance(m, whole), 1e-5);
  EXPECT_NEAR(energy(m), energy(given), 1e-5 * energy(given));
  turn(left, right, Direction::kOutOf, rows, cols, m);
  EXPECT_LT(distance(m, given), 5e-6);
}

TEST(BlockReflector, GivesTheSameBitsOnEveryTarget) {
  const std::size_t rows = 45, cols = 67;
  std::vector<float> expected;
  for (const auto& target : kernels::simd_targets()) {
    kernels::set_simd_target(target);
    auto left_columns = orthonormal(rows, 16, 1), right_columns = orthonormal(cols, 5, 2);
    const BlockReflector left(left_columns, rows, 16), right(right_columns, cols, 5);
    auto m = thinwire::testing::standard_normal(rows * cols, 3);
    turn(left, right, Direction::kInto, rows, cols, m);
    if (expected.empty()) expected = m;
    EXPECT_EQ(m, expected) << target;
  }
  kernels::set_simd_target("");
}

}  // namespace
}  // namespace thinwire::spectral
