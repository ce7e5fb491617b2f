#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/half_math.h"
#include "thinwire/compressors/peft/float_bits.h"
#include "thinwire/compressors/peft/select.h"

namespace thinwire::peft {
namespace {

DeltaPiece piece_of(const std::vector<float>& values) {
  DeltaPiece piece;
  piece.tuned = view_of(std::span<const float>(values));
  piece.name = "x";
  return piece;
}

DeltaStatistics select(const std::vector<float>& values, std::int64_t keep, TernaryPlanes& planes) {
  planes = TernaryPlanes(static_cast<std::int64_t>(values.size()));
  const DeltaPiece piece = piece_of(values);
  return select_largest({&piece, 1}, keep, planes);
}

TEST(Selection, IsWhatAStableSortGives) {
  for (const std::size_t n : {0, 1, 2, 63, 64, 65, 1000, 40001}) {
    // Few distinct magnitudes, so that the threshold is tied.
    std::vector<float> values = test::normal_values(n, n);
    for (float& value : values) value = std::round(value * 4) / 4;
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return std::fabs(values[a]) > std::fabs(values[b]);
    });
    for (const std::size_t keep : {n / 20, n / 3, n}) {
      TernaryPlanes planes;
      const auto found = select(values, static_cast<std::int64_t>(keep), planes);
      TernaryPlanes expected(static_cast<std::int64_t>(n));
      std::int64_t kept = 0;
      for (std::size_t i = 0; i < keep; ++i) {
        const float value = values[order[i]];
        if (value == 0) continue;
        expected.set(static_cast<std::int64_t>(order[i]), value < 0 ? -1 : 1);
        ++kept;
      }
      EXPECT_EQ(found.kept, kept);
      EXPECT_TRUE(std::ranges::equal(planes.mask(), expected.mask())) << n << " " << keep;
      EXPECT_TRUE(std::ranges::equal(planes.sign(), expected.sign())) << n << " " << keep;
    }
  }
}

TEST(Selection, GaussianErrorIsTheClosedForm) {
  const auto values = test::normal_values(1 << 20, 5);
  const auto n = static_cast<std::int64_t>(values.size());
  for (const auto& [k, m] : {std::pair{0.05, 2.338}, {0.20, 1.755}}) {
    TernaryPlanes planes;
    const auto found = select(values, keep_count(k, n), planes);
    EXPECT_EQ(found.kept, static_cast<std::int64_t>(k * static_cast<double>(n)));
    EXPECT_EQ(count_nonzero(planes.view()), found.kept);
    EXPECT_NEAR(found.mean_kept / found.standard_deviation, m, 0.01);
    for (const double alpha : {0.5, 1.0, 3.0}) {
      const double scale = alpha * found.standard_deviation;
      double error = 0, norm = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        const double x = values[static_cast<std::size_t>(i)];
        const double rest = x - scale * planes.view().trit(i);
        error += rest * rest;
        norm += x * x;
      }
      EXPECT_NEAR(error / norm, 1 - 2 * k * alpha * m + k * alpha * alpha, 0.01);
      EXPECT_NEAR(found.relative_squared_error(scale), error / norm, 1e-9);
    }
  }
}

TEST(Selection, MeanScaleContractsByItsIdentity) {
  const auto values = test::normal_values(10000, 9);
  TernaryPlanes planes;
  const auto found = select(values, 700, planes);
  double error = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double rest =
        values[i] - found.mean_kept * planes.view().trit(static_cast<std::int64_t>(i));
    error += rest * rest;
  }
  EXPECT_NEAR(error, found.squared_norm - 700 * found.mean_kept * found.mean_kept, 1e-8);
}

// e <- x + e - C(x + e): bounded with the mean scale, exploding with alpha = 5 at k = 20 %.
double residual_growth(const ScaleRule& rule) {
  const std::size_t n = 4096;
  std::vector<float> residual(n, 0.0f);
  for (std::uint64_t step = 0; step < 60; ++step) {
    std::vector<float> corrected = test::normal_values(n, 100 + step);
    for (std::size_t i = 0; i < n; ++i) corrected[i] += residual[i];
    TernaryPlanes planes;
    const auto found = select(corrected, keep_count(0.2, n), planes);
    residual = corrected;
    axpy(static_cast<float>(-rule.scale(found.mean_kept, found.standard_deviation)), planes.view(),
         0, view_of(std::span<float>(residual)));
  }
  double norm = 0;
  for (const float value : residual) norm += static_cast<double>(value) * value;
  return std::sqrt(norm / n);
}

TEST(Selection, MeanScaleStaysBoundedUnderErrorFeedbackAndALargeAlphaExplodes) {
  EXPECT_LT(residual_growth(ScaleRule{}), 10);
  EXPECT_GT(residual_growth(ScaleRule{5.0}), 1e6);
}

TEST(Selection, GaussianMeansOfTheKeptAreThePublishedOnes) {
  EXPECT_NEAR(gaussian_mean_kept(0.01), 2.892, 5e-4);
  EXPECT_NEAR(gaussian_mean_kept(0.05), 2.338, 5e-4);
  EXPECT_NEAR(gaussian_mean_kept(0.20), 1.755, 5e-4);
  EXPECT_NEAR(gaussian_mean_kept(0.50), 1.271, 5e-4);
  EXPECT_NEAR(gaussian_mean_kept(1.0), std::sqrt(2 / std::numbers::pi), 1e-6);
  EXPECT_THROW(gaussian_mean_kept(0), InvalidArgument);
  EXPECT_EQ(repeat_warning(3.9, gaussian_mean_kept(0.05)), "");
  EXPECT_NE(repeat_warning(4.0, gaussian_mean_kept(0.05)), "");
}

TEST(Selection, WarnsWhereARepeatedExchangeDiverges) {
  const auto values = test::normal_values(100000, 3);
  TernaryPlanes planes;
  const auto found = select(values, 20000, planes);  // m = 1.755
  EXPECT_EQ(ScaleRule{}.repeat_warning(found.mean_kept, found.standard_deviation), "");
  EXPECT_EQ(ScaleRule{1.0}.repeat_warning(found.mean_kept, found.standard_deviation), "");
  EXPECT_NE(ScaleRule{3.6}
                .repeat_warning(found.mean_kept, found.standard_deviation)
                .find("larger than the delta"),
            std::string::npos);
  const auto sparse = select(values, 1000, planes);  // m = 2.89
  EXPECT_NE(ScaleRule{4.5}
                .repeat_warning(sparse.mean_kept, sparse.standard_deviation)
                .find("error feedback"),
            std::string::npos);
}

TEST(Selection, RefusesWhatIsNotFiniteByName) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(100, 1.0f);
    values[42] = bad;
    TernaryPlanes planes;
    try {
      select(values, 5, planes);
      FAIL();
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("x is not finite at 42"), std::string::npos);
    }
  }
}

TEST(Selection, SeveralPiecesShareOneThreshold) {
  const auto all = test::normal_values(1000, 4);
  TernaryPlanes expected, planes(1000);
  select(all, 100, expected);
  const std::vector<float> a(all.begin(), all.begin() + 333), b(all.begin() + 333, all.end());
  std::vector<DeltaPiece> pieces{piece_of(a), piece_of(b)};
  pieces[1].offset = 333;
  select_largest(pieces, 100, planes);
  EXPECT_TRUE(std::ranges::equal(planes.mask(), expected.mask()));
  EXPECT_TRUE(std::ranges::equal(planes.sign(), expected.sign()));
}

TEST(Planes, DotEqualsTheReferenceOnEveryLength) {
  for (const std::int64_t numel : {0, 1, 63, 64, 65, 511, 512, 513, 4096, 100003, 300000}) {
    const auto a = test::random_planes(numel, 0.4, 1), b = test::random_planes(numel, 0.7, 2);
    std::int64_t expected = 0, count = 0;
    for (std::int64_t i = 0; i < numel; ++i) {
      expected += a.view().trit(i) * b.view().trit(i);
      count += a.view().trit(i) != 0;
    }
    EXPECT_EQ(dot(a.view(), b.view()), expected);
    EXPECT_EQ(detail::dot_words_reference(a.mask(), a.sign(), b.mask(), b.sign()), expected);
    EXPECT_EQ(count_nonzero(a.view()), count);
  }
}

TEST(Planes, CosineAndNormAreThoseOfTheDenseVectors) {
  const auto a = test::random_planes(5000, 0.2, 3), b = test::random_planes(5000, 0.3, 4);
  std::vector<float> x(5000), y(5000);
  expand(0.5f, 0, a.view(), 0, x);
  expand(3.0f, 0, b.view(), 0, y);
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += x[i] * y[i];
    xx += x[i] * x[i];
    yy += y[i] * y[i];
  }
  EXPECT_NEAR(cosine(a.view(), b.view()), xy / std::sqrt(xx * yy), 1e-12);
  EXPECT_NEAR(norm(a.view(), 0.5), std::sqrt(xx), 1e-9);
  EXPECT_EQ(cosine(a.view(), TernaryPlanes(5000).view()), 0);
}

TEST(Planes, AxpyAddsToEveryDtypeAndRangeWithOneRounding) {
  const auto planes = test::random_planes(300, 0.5, 6);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const auto& [begin, count] : {std::pair{0, 300}, {1, 64}, {63, 130}, {299, 1}, {5, 0}}) {
      std::vector<std::byte> data(300 * 4 + 1);
      std::byte* unaligned = data.data() + 1;
      const auto start = test::normal_values(300, 8);
      for (int i = 0; i < count; ++i)
        detail::store_float(unaligned, i, dtype, start[static_cast<std::size_t>(i)]);
      std::vector<std::byte> expected = data;
      for (int i = 0; i < count; ++i)
        detail::store_float(expected.data() + 1, i, dtype,
                            detail::load_float(expected.data() + 1, i, dtype) +
                                0.3f * static_cast<float>(planes.view().trit(begin + i)));
      axpy(0.3f, planes.view(), begin, {.data = unaligned, .numel = count, .dtype = dtype});
      EXPECT_EQ(data, expected);
    }
  }
}

TEST(Planes, ExtractCopiesAnyRange) {
  const auto planes = test::random_planes(500, 0.5, 7);
  for (const auto& [begin, count] : {std::pair{0, 500}, {3, 200}, {64, 64}, {449, 51}, {10, 0}}) {
    const auto copy = extract(planes.view(), begin, count);
    ASSERT_EQ(copy.numel(), count);
    for (int i = 0; i < count; ++i) EXPECT_EQ(copy.view().trit(i), planes.view().trit(begin + i));
    if (count % 64 != 0) {
      EXPECT_EQ(copy.mask().back() >> (count % 64), 0u);
    }
  }
  EXPECT_THROW(extract(planes.view(), 1, 500), InvalidArgument);
}

TEST(FloatBits, EverySixteenBitValueSurvives) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float x = kernels::float_from_half(half), y = kernels::float_from_bfloat(half);
    EXPECT_TRUE(std::isnan(x) || kernels::half_from_float(x) == half) << bits;
    EXPECT_TRUE(std::isnan(y) || kernels::bfloat_from_float(y) == half) << bits;
  }
  EXPECT_EQ(kernels::half_from_float(65519.0f), 0x7BFF);
  EXPECT_EQ(kernels::half_from_float(65520.0f), 0x7C00);
  EXPECT_EQ(kernels::half_from_float(0x1p-25f), 0);  // a tie goes to the even zero
  EXPECT_EQ(kernels::half_from_float(0x1.8p-25f), 1);
}

}  // namespace
}  // namespace thinwire::peft
