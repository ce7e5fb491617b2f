#include "thinwire/compressors/spectral/matrix_basis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "spectral_fixture.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::spectral {
namespace {

using testing::distance;
using testing::energy;
using testing::Gradients;

constexpr RandomKey kKey{.seed = 3, .layer = 8};

// One step of training as a reduction has it.
void learn_from(MatrixBasis& basis, std::vector<float> mean, bool refresh) {
  basis.turn_into(mean);
  basis.learn(mean);
  if (refresh) basis.refresh(kKey);
}

MatrixBasis trained(const Gradients& gradients, int directions, int steps) {
  MatrixBasis basis(
      {static_cast<std::int64_t>(gradients.rows), static_cast<std::int64_t>(gradients.cols)},
      directions, kKey);
  for (int step = 0; step < steps; ++step) {
    learn_from(basis, gradients.of(static_cast<unsigned>(step)), step < 4 || step % 5 == 0);
  }
  return basis;
}

// Share of the energy in the largest `count` elements.
double concentration(std::vector<float> values, std::size_t count) {
  const double all = energy(values);
  std::ranges::sort(values, [](float a, float b) { return std::abs(a) > std::abs(b); });
  values.resize(count);
  return energy(values) / all;
}

TEST(MatrixShape, SeesLayersAsMatrices) {
  const auto shape = [](std::vector<std::int64_t> extents, std::int64_t numel) {
    return matrix_shape(extents, numel);
  };
  EXPECT_EQ(shape({6, 4}, 24), (MatrixShape{6, 4}));
  EXPECT_EQ(shape({8, 3, 5, 5}, 600), (MatrixShape{8, 75}));
  EXPECT_EQ(shape({7}, 7), (MatrixShape{1, 7}));
  EXPECT_EQ(shape({1, 9}, 9), (MatrixShape{1, 9}));
  EXPECT_EQ(shape({9, 1}, 9), (MatrixShape{1, 9}));
  EXPECT_EQ(shape({}, 5), (MatrixShape{1, 5}));
}

TEST(MatrixBasis, GathersGradientsOfFewDirections) {
  const Gradients gradients{.rows = 60, .cols = 100, .rank = 4};
  const MatrixBasis basis = trained(gradients, 8, 20);
  auto next = gradients.of(999);
  const double before = concentration(next, 64);
  const auto given = next;
  basis.turn_into(next);
  EXPECT_NEAR(energy(next), energy(given), 1e-5 * energy(given));
  EXPECT_LT(before, 0.2);
  // 8 x 8 of 6000 elements hold what the directions do.
  double corner = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    for (std::size_t j = 0; j < 8; ++j) corner += double{next[i * 100 + j]} * next[i * 100 + j];
  }
  EXPECT_GT(corner / energy(next), 0.95);
  basis.turn_out_of(next);
  EXPECT_LT(distance(next, given), 1e-5 * std::sqrt(energy(given)));
}

TEST(MatrixBasis, PredictsTheSizesOfElements) {
  const Gradients gradients{.rows = 60, .cols = 100, .rank = 4};
  const MatrixBasis basis = trained(gradients, 8, 30);
  auto next = gradients.of(999);
  basis.turn_into(next);
  std::vector<std::size_t> order(next.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](std::size_t e) {
    return std::size_t{basis.row_levels()[e / 100]} + basis.column_levels()[e % 100];
  });
  std::vector<float> predicted;
  for (std::size_t i = 0; i < 64; ++i) predicted.push_back(next[order[i]]);
  EXPECT_GT(energy(predicted) / energy(next), 0.9);
}

TEST(MatrixBasis, IsTheSameOnEveryTarget) {
  const Gradients gradients{.rows = 33, .cols = 50, .rank = 3};
  const MatrixBasis expected = trained(gradients, 5, 12);
  for (const auto& target : kernels::simd_targets()) {
    kernels::set_simd_target(target);
    EXPECT_TRUE(trained(gradients, 5, 12).state() == expected.state()) << target;
  }
  kernels::set_simd_target("");
}

TEST(MatrixBasis, GoesOnFromItsState) {
  const Gradients gradients{.rows = 24, .cols = 40, .rank = 3};
  MatrixBasis whole = trained(gradients, 6, 9);
  MatrixBasis resumed(whole.state());
  EXPECT_TRUE(resumed.state() == whole.state()) << "signs were settled before";
  for (unsigned step = 9; step < 16; ++step) {
    learn_from(whole, gradients.of(step), step % 3 == 0);
    learn_from(resumed, gradients.of(step), step % 3 == 0);
    auto a = gradients.of(50), b = a;
    whole.turn_into(a);
    resumed.turn_into(b);
    EXPECT_EQ(a, b);
  }
  EXPECT_TRUE(resumed.state() == whole.state());
}

TEST(MatrixBasis, RefusesStatesThatDoNotFit) {
  const MatrixBasis basis({6, 9}, 4, kKey);
  const auto refused = [&](auto change) {
    MatrixBasis::State state = basis.state();
    change(state);
    EXPECT_THROW(MatrixBasis{state}, InvalidArgument);
  };
  refused([](auto& state) { state.left.pop_back(); });
  refused([](auto& state) { state.shape.cols = 10; });
  refused([](auto& state) { state.directions = 7; });
  refused([](auto& state) { state.row_levels[0] = 3000; });
  refused([](auto& state) { state.column_sizes.clear(); });
}

// Zeros, fewer directions than were asked for, and what overflows.
TEST(MatrixBasis, StaysABasisWhateverItLearnsFrom) {
  const auto check_orthogonal = [](const MatrixBasis& basis, const char* what) {
    const auto given = thinwire::testing::standard_normal(20 * 30, 5);
    auto m = given;
    basis.turn_into(m);
    EXPECT_NEAR(energy(m), energy(given), 1e-5 * energy(given)) << what;
    basis.turn_out_of(m);
    EXPECT_LT(distance(m, given), 1e-5) << what;
  };
  MatrixBasis basis({20, 30}, 8, kKey);
  const auto first = basis.state().left;
  learn_from(basis, std::vector<float>(600), true);
  EXPECT_EQ(basis.state().left, first) << "nothing was learned";
  check_orthogonal(basis, "zeros");
  const Gradients one{.rows = 20, .cols = 30, .rank = 1, .noise = 0};
  for (unsigned step = 0; step < 4; ++step) {
    learn_from(basis, one.of(step), true);
    check_orthogonal(basis, "one direction");
  }
  for (const float scale : {1e-42f, 1e-25f, 1e37f}) {
    auto mean = Gradients{.rows = 20, .cols = 30, .rank = 3}.of(1);
    for (float& value : mean) value *= scale;
    basis.learn(mean);
    basis.refresh(kKey);
    check_orthogonal(basis, "extreme sizes");
  }
}

TEST(MatrixBasis, TakesALayerWithoutElements) {
  MatrixBasis basis(matrix_shape({}, 0), 16, kKey);
  learn_from(basis, {}, true);
  EXPECT_TRUE(MatrixBasis(basis.state()).state() == basis.state());
}

TEST(MatrixBasis, VectorsHaveOneLevel) {
  MatrixBasis basis({1, 100}, 16, kKey);
  EXPECT_EQ(basis.state().directions, 0);
  const auto given = thinwire::testing::standard_normal(100, 6);
  learn_from(basis, given, true);
  auto same = given;
  basis.turn_into(same);
  EXPECT_EQ(same, given);
  EXPECT_EQ(basis.column_levels().size(), 100u);
  EXPECT_TRUE(std::ranges::all_of(basis.column_levels(), [&](std::uint16_t level) {
    return level == basis.column_levels()[0];
  }));
}

}  // namespace
}  // namespace thinwire::spectral
