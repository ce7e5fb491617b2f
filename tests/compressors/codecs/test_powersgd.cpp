#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/low_rank_ref.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire {
namespace {

// Squared singular values, descending: one-sided Jacobi in double precision on the columns of M.
std::vector<double> squared_singular_values(const std::vector<float>& m, std::size_t rows,
                                            std::size_t cols) {
  std::vector<std::vector<double>> column(cols, std::vector<double>(rows));
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) column[j][i] = m[i * cols + j];
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (std::size_t a = 0; a < cols; ++a) {
      for (std::size_t b = a + 1; b < cols; ++b) {
        double aa = 0, bb = 0, ab = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          aa += column[a][i] * column[a][i];
          bb += column[b][i] * column[b][i];
          ab += column[a][i] * column[b][i];
        }
        if (ab == 0) continue;
        const double tau = (bb - aa) / (2 * ab);
        const double t = (tau >= 0 ? 1 : -1) / (std::abs(tau) + std::sqrt(1 + tau * tau));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        for (std::size_t i = 0; i < rows; ++i) {
          const double x = column[a][i], y = column[b][i];
          column[a][i] = c * x - s * y;
          column[b][i] = s * x + c * y;
        }
      }
    }
  }
  std::vector<double> values;
  for (const auto& c : column) {
    double sum = 0;
    for (const double x : c) sum += x * x;
    values.push_back(sum);
  }
  std::sort(values.rbegin(), values.rend());
  return values;
}

TEST(LowRankKernels, EqualTheReferenceOnEveryTarget) {
  for (const auto& [rows, cols] :
       {std::pair<std::size_t, std::size_t>{1, 1}, {3, 50}, {50, 3}, {17, 33}, {64, 128}}) {
    for (const std::size_t r : {std::size_t{1}, std::size_t{3}, std::size_t{4}, std::size_t{9}}) {
      const auto m = thinwire::testing::standard_normal(rows * cols, 1),
                 q = thinwire::testing::standard_normal(cols * r, 2),
                 own_q = thinwire::testing::standard_normal(cols * r, 3);
      std::vector<float> p(rows * r), q2(cols * r), m2(rows * cols), lost(rows * cols);
      kernels::ref::low_rank_multiply(m.data(), rows, cols, q.data(), r, p.data());
      auto orthogonal = p;
      kernels::ref::orthogonalize(orthogonal.data(), rows, r);
      kernels::ref::low_rank_multiply_transposed(m.data(), rows, cols, p.data(), r, q2.data());
      kernels::ref::low_rank_reconstruct(p.data(), q.data(), rows, cols, r, m2.data());
      kernels::ref::low_rank_reconstruct(p.data(), own_q.data(), rows, cols, r, lost.data());
      for (std::size_t i = 0; i < lost.size(); ++i) lost[i] = m[i] - lost[i];
      for (const auto& target : kernels::simd_targets()) {
        kernels::set_simd_target(target);
        SCOPED_TRACE(concat(target, " ", rows, "x", cols, " rank ", r));
        std::vector<float> out(rows * r), out_q(cols * r), out_m(rows * cols);
        kernels::low_rank_multiply(m.data(), rows, cols, q.data(), r, out.data());
        EXPECT_EQ(out, p);
        kernels::orthogonalize(out.data(), rows, r);
        EXPECT_EQ(out, orthogonal);
        kernels::low_rank_multiply_transposed(m.data(), rows, cols, p.data(), r, out_q.data());
        EXPECT_EQ(out_q, q2);
        kernels::low_rank_reconstruct(p.data(), q.data(), rows, cols, r, out_m.data());
        EXPECT_EQ(out_m, m2);
        auto replaced = m;
        std::vector<float> out_lost(rows * cols);
        kernels::low_rank_replace(p.data(), own_q.data(), q.data(), rows, cols, r, replaced.data(),
                                  out_lost.data());
        EXPECT_EQ(out_lost, lost);
        EXPECT_EQ(replaced, m2);
      }
      kernels::set_simd_target("");
    }
  }
}

TEST(Orthogonalize, DropsDependentColumnsAndKeepsNan) {
  constexpr std::size_t kRows = 40;
  auto p = thinwire::testing::standard_normal(kRows * 4, 3);
  for (std::size_t i = 0; i < kRows; ++i) {
    p[kRows + i] = 1e-30f * p[i];  // depends on the first, and is tiny
    p[2 * kRows + i] = 0;
  }
  kernels::orthogonalize(p.data(), kRows, 4);
  const auto product = [&](std::size_t a, std::size_t b) {
    return kernels::ref::dot(p.data() + a * kRows, p.data() + b * kRows, kRows);
  };
  EXPECT_NEAR(product(0, 0), 1, 1e-6);
  EXPECT_EQ(product(1, 1), 0);
  EXPECT_EQ(product(2, 2), 0);
  EXPECT_NEAR(product(3, 3), 1, 1e-6);
  EXPECT_NEAR(product(0, 3), 0, 1e-6);
  p[5] = std::numeric_limits<float>::quiet_NaN();
  kernels::orthogonalize(p.data(), kRows, 1);
  EXPECT_TRUE(std::isnan(p[0]));
}

// Warm start on one matrix is subspace iteration: it ends at the best error of any rank-r matrix.
TEST(PowerSgd, WarmStartConvergesToTheSvdTail) {
  constexpr std::size_t kRows = 30, kCols = 20, kRank = 3;
  auto m = thinwire::testing::standard_normal(kRows * kCols, 4);
  for (std::size_t i = 0; i < m.size(); ++i) m[i] *= 1.0f / static_cast<float>(1 + i % kCols);
  const auto exact = squared_singular_values(m, kRows, kCols);
  double tail = 0;
  for (std::size_t j = kRank; j < exact.size(); ++j) tail += exact[j];
  std::vector<float> q(kCols * kRank), p(kRows * kRank), out(kRows * kCols);
  init_factor({.seed = 1}, kCols, 0, kRank, q);
  for (int step = 0; step < 200; ++step) {
    kernels::low_rank_multiply(m.data(), kRows, kCols, q.data(), kRank, p.data());
    kernels::orthogonalize(p.data(), kRows, kRank);
    kernels::low_rank_multiply_transposed(m.data(), kRows, kCols, p.data(), kRank, q.data());
  }
  kernels::low_rank_reconstruct(p.data(), q.data(), kRows, kCols, kRank, out.data());
  double error = 0;
  for (std::size_t i = 0; i < m.size(); ++i) error += std::pow(double{m[i]} - double{out[i]}, 2);
  EXPECT_NEAR(error, tail, 1e-4 * tail);
}

TEST(PowerSgd, FactorOfAnotherRankKeepsWhatItHas) {
  std::vector<float> q(20);
  init_factor({.seed = 2, .rank = 0}, 10, 0, 2, q);
  std::vector<float> other(20);
  init_factor({.seed = 2, .rank = 5}, 10, 0, 2, other);
  EXPECT_EQ(q, other);
  const auto before = q;
  resize_factor({.seed = 2}, 10, 2, 4, q);
  ASSERT_EQ(q.size(), 40u);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), q.begin()));
  EXPECT_NE(q[25], 0);
  std::fill_n(q.begin(), 10, 0.0f);  // a column that became dependent
  resize_factor({.seed = 3}, 10, 4, 1, q);
  ASSERT_EQ(q.size(), 10u);
  EXPECT_NE(q[0], 0);
}

TEST(PowerSgd, FactorsAreNamedOrFollowANumberOfBits) {
  EXPECT_EQ(make_codec("powersgd(factors=ecsq)")->spec(),
            "powersgd(rank=4, iterations=1, factors=ecsq(bits=2.5))");
  EXPECT_EQ(make_codec("powersgd(rank=8, factors=ecsq(bits=3))")->spec(),
            "powersgd(rank=8, iterations=1, factors=ecsq(bits=3))");
  const auto message = [](const char* spec) -> std::string {
    try {
      make_codec(spec);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "accepted";
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message("powersgd(factors=int2)"),
              HasSubstr("fp32, bf16, int8, int4 or ecsq(bits=F), got 'int2'"));
  EXPECT_THAT(message("powersgd(factors=topk(density=0.1))"),
              HasSubstr("or ecsq(bits=F), got 'topk(density=0.1)'"));
  EXPECT_THAT(message("powersgd(factors=ecsq(error=0.1))"),
              HasSubstr("follow a number of bits, as in ecsq(bits=3), got 'ecsq(error=0.1)'"));
  EXPECT_THAT(message("powersgd(factors=ecsq(bit=3))"), HasSubstr("bits"));
}

// Of few elements the payloads are larger than the tensor.
TEST(PowerSgd, SmallMatricesWithCodedFactorsFitTheirPayload) {
  const CodecPtr codec = make_codec("powersgd(rank=1, factors=ecsq(bits=3))");
  const std::int64_t shape[] = {3, 3};
  const auto m = thinwire::testing::standard_normal(9, 5);
  ConstTensorView input = view_of(std::span(m));
  input.shape = shape;
  std::vector<std::byte> payload(codec->max_compressed_bytes(9, DType::kFloat32));
  const std::size_t bytes = codec->compress(input, {}, payload);
  EXPECT_GT(bytes, sizeof(float) * m.size()) << "the case of the test";
  EXPECT_EQ(bytes,
            factor_bytes(low_rank_shape(shape, DType::kFloat32, 1), *codec->facts().factors));
}

// All layers of ResNet-18 for CIFAR-100 in float32; one-dimensional ones uncompressed.
TEST(PowerSgd, RatioOfResNet18IsThePublishedOne) {
  std::vector<std::vector<std::int64_t>> layers = {{64, 3, 3, 3}, {100, 512}, {100}, {64}, {64}};
  std::int64_t in = 64;
  for (const std::int64_t width : {64, 128, 256, 512}) {
    for (int block = 0; block < 2; ++block) {
      layers.push_back({width, in, 3, 3});
      layers.push_back({width, width, 3, 3});
      for (int norm = 0; norm < 4; ++norm) layers.push_back({width});
      if (in != width) {
        layers.push_back({width, in, 1, 1});
        layers.push_back({width});
        layers.push_back({width});
      }
      in = width;
    }
  }
  const auto ratio_of = [&](const char* spec) {
    const CodecPtr codec = make_codec(spec);
    double dense = 0, sent = 0;
    for (const auto& layer : layers) {
      std::int64_t numel = 1;
      for (const auto extent : layer) numel *= extent;
      const auto shape = low_rank_shape(layer, DType::kFloat32, 4);
      dense += 4.0 * static_cast<double>(numel);
      if (std::string_view(spec).starts_with("powersgd")) {
        sent += 4.0 * static_cast<double>(shape.rank > 0 ? shape.factor_numel() : numel);
      } else {
        sent += static_cast<double>(codec->max_compressed_bytes(numel, DType::kFloat32));
      }
    }
    return dense / sent;
  };
  EXPECT_NEAR(ratio_of("powersgd(rank=4)"), 72.2, 0.1);
  EXPECT_NEAR(ratio_of("quantize(bits=4, bucket=1024)"), 7.8, 0.1);
  EXPECT_GT(ratio_of("topk(density=0.01)"), 60);  // 48 with four bytes an index
}

}  // namespace
}  // namespace thinwire
