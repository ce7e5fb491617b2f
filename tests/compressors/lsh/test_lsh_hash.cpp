// Rotations and the cross-polytope hash: SIMD against the scalar definition, collision
// probabilities, structured input, ties and non-finite tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "thinwire/common/error.h"
#include "thinwire/compressors/lsh/cross_polytope.h"
#include "thinwire/compressors/lsh/hash_ref.h"
#include "thinwire/tests/support/simd_targets.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire::lsh {
namespace {

std::vector<HashCode> hash_all(const CrossPolytopeHash& hash, std::span<const float> tokens) {
  const std::size_t count = tokens.size() / static_cast<std::size_t>(hash.dim());
  std::vector<HashCode> codes(count * static_cast<std::size_t>(hash.hashes()));
  hash.hash(tokens, codes);
  return codes;
}

std::vector<HashCode> hash_all_ref(const CrossPolytopeHash& hash, std::span<const float> tokens) {
  const auto dim = static_cast<std::size_t>(hash.dim());
  std::vector<HashCode> codes;
  for (std::size_t t = 0; t < tokens.size() / dim; ++t) {
    for (const Rotation& rotation : hash.rotations()) {
      codes.push_back(nearest_vertex_ref(rotate_ref(rotation, tokens.subspan(t * dim, dim))));
    }
  }
  return codes;
}

struct Shape {
  std::int64_t dim, hash_dim;
  RotationKind kind;
};

class HashTargets : public ::testing::TestWithParam<Shape> {};

TEST_P(HashTargets, EveryTargetEqualsTheScalarDefinition) {
  const auto [dim, hash_dim, kind] = GetParam();
  const CrossPolytopeHash hash(dim, {.hashes = 3, .hash_dim = hash_dim, .rotation = kind});
  for (const std::size_t count : {0, 1, 7, 16, 37}) {
    auto tokens = thinwire::testing::standard_normal(count * static_cast<std::size_t>(dim), 5);
    if (count > 20) {  // the odd ones among them
      const auto d = static_cast<std::size_t>(dim);
      std::fill_n(tokens.begin(), d, 0.0f);
      tokens[d] = std::numeric_limits<float>::quiet_NaN();
      tokens[2 * d] = std::numeric_limits<float>::infinity();
      std::fill_n(tokens.begin() + static_cast<std::ptrdiff_t>(3 * d), d, 3e38f);
    }
    const auto expected = hash_all_ref(hash, tokens);
    int targets = 0;
    thinwire::testing::for_each_simd_target([&](std::string_view target) {
      ++targets;
      EXPECT_EQ(hash_all(hash, tokens), expected) << target << ", " << count << " tokens";
    });
    EXPECT_GE(targets, 2);  // one vector target and the scalar one at least
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, HashTargets,
    ::testing::Values(Shape{1, 1, RotationKind::kHadamard}, Shape{2, 2, RotationKind::kHadamard},
                      Shape{7, 3, RotationKind::kHadamard}, Shape{64, 16, RotationKind::kHadamard},
                      Shape{100, 16, RotationKind::kHadamard},
                      Shape{512, 16, RotationKind::kHadamard},
                      Shape{300, 0, RotationKind::kHadamard},
                      Shape{1024, 0, RotationKind::kHadamard}, Shape{1, 1, RotationKind::kGaussian},
                      Shape{63, 5, RotationKind::kGaussian},
                      Shape{96, 16, RotationKind::kGaussian}));

// Share of pairs with the given cosine whose first `prefix` codes agree.
std::vector<double> collision_rates(RotationKind kind, double cosine, int hashes, int families,
                                    int pairs) {
  constexpr std::size_t kDim = 64;
  std::vector<double> rates(static_cast<std::size_t>(hashes) + 1, 0.0);
  for (int family = 0; family < families; ++family) {
    const CrossPolytopeHash hash(kDim, {.hashes = hashes,
                                        .hash_dim = 0,
                                        .rotation = kind,
                                        .seed = static_cast<std::uint64_t>(family)});
    auto tokens = thinwire::testing::standard_normal(2 * kDim * static_cast<std::size_t>(pairs),
                                                     1000 + static_cast<unsigned>(family));
    for (std::size_t pair = 0; pair < static_cast<std::size_t>(pairs); ++pair) {
      float* x = tokens.data() + 2 * pair * kDim;
      float* y = x + kDim;
      // y := cosine · x/|x| + sine · (the part of y orthogonal to x, normalised)
      const auto dot = [](const float* a, const float* b) {
        return std::inner_product(a, a + kDim, b, 0.0);
      };
      const double x_norm = std::sqrt(dot(x, x));
      for (std::size_t j = 0; j < kDim; ++j) x[j] = static_cast<float>(x[j] / x_norm);
      const double along = dot(x, y);
      for (std::size_t j = 0; j < kDim; ++j) y[j] = static_cast<float>(y[j] - along * x[j]);
      const double y_norm = std::sqrt(dot(y, y));
      const double sine = std::sqrt(1 - cosine * cosine);
      for (std::size_t j = 0; j < kDim; ++j) {
        y[j] = static_cast<float>(cosine * x[j] + sine * y[j] / y_norm);
      }
    }
    const auto codes = hash_all(hash, tokens);
    const auto width = static_cast<std::size_t>(hashes);
    for (std::size_t pair = 0; pair < static_cast<std::size_t>(pairs); ++pair) {
      const HashCode* a = codes.data() + 2 * pair * width;
      rates[0] += 1;
      for (std::size_t p = 0; p < width && a[p] == a[width + p]; ++p) rates[p + 1] += 1;
    }
  }
  for (double& rate : rates) rate /= families * pairs;
  return rates;
}

// Reference values by numerical integration of the joint distribution of two correlated Gaussian
// vectors. The tolerances are four standard deviations of the estimate.
TEST(CollisionProbability, OneGaussianHash) {
  constexpr int kFamilies = 400, kPairs = 50;
  const auto tolerance = [](double p) { return 4 * std::sqrt(p * (1 - p) / (kFamilies * kPairs)); };
  for (const auto& [cosine, expected] :
       {std::pair{0.9, 0.4645}, std::pair{0.5, 0.0982}, std::pair{0.0, 1.0 / 128}}) {
    const double rate = collision_rates(RotationKind::kGaussian, cosine, 1, kFamilies, kPairs)[1];
    EXPECT_NEAR(rate, expected, tolerance(expected)) << "cosine " << cosine;
  }
}

TEST(CollisionProbability, SeveralHashesGiveThePower) {
  for (const auto kind : {RotationKind::kGaussian, RotationKind::kHadamard}) {
    constexpr int kFamilies = 200, kPairs = 50;
    const auto rates = collision_rates(kind, 0.9, 3, kFamilies, kPairs);
    for (int k = 1; k <= 3; ++k) {
      const double expected = std::pow(0.4645, k);
      const double deviation = std::sqrt(expected * (1 - expected) / (kFamilies * kPairs));
      EXPECT_NEAR(rates[static_cast<std::size_t>(k)], expected, 4 * deviation) << k << " hashes";
    }
  }
}

// The 64 basis vectors under one rotation in full dimension.
struct BasisImages {
  std::int64_t equal_pairs = 0;             // pairs with equal hashes, of 2016
  std::set<std::vector<float>> magnitudes;  // of every image, sorted
  bool tie = false;                         // some image has two largest coordinates

  BasisImages(int rounds, int seed) {
    constexpr std::int64_t kDim = 64;
    const Rotation rotation(RotationKind::kHadamard, kDim, kDim,
                            {.seed = static_cast<std::uint64_t>(seed)}, rounds);
    std::vector<HashCode> codes;
    for (std::size_t i = 0; i < kDim; ++i) {
      std::vector<float> token(kDim, 0.0f);
      token[i] = 1;
      auto image = rotate_ref(rotation, token);
      const HashCode code = nearest_vertex_ref(image);
      equal_pairs += std::count(codes.begin(), codes.end(), code);
      codes.push_back(code);
      for (float& y : image) y = std::fabs(y);
      std::sort(image.begin(), image.end());
      tie = tie || image[kDim - 1] == image[kDim - 2];
      magnitudes.insert(image);
    }
  }
};

// Probability that two orthogonal vectors of dimension 64 collide under a true random rotation,
// by sampling. It is below the 1/128 of a Gaussian matrix: where one image is large, the other
// tends to be small, because they stay orthogonal.
double collision_of_orthogonal_vectors() {
  constexpr std::size_t kDim = 64;
  constexpr std::size_t kPairs = 100000;
  auto samples = thinwire::testing::standard_normal(2 * kDim * kPairs, 11);
  std::int64_t equal = 0;
  for (std::size_t pair = 0; pair < kPairs; ++pair) {
    const std::span<float> x(samples.data() + 2 * pair * kDim, kDim);
    const std::span<float> y(x.data() + kDim, kDim);
    const float along = std::inner_product(x.begin(), x.end(), y.begin(), 0.0f) /
                        std::inner_product(x.begin(), x.end(), x.begin(), 0.0f);
    for (std::size_t j = 0; j < kDim; ++j) y[j] -= along * x[j];
    equal += nearest_vertex_ref(x) == nearest_vertex_ref(y);
  }
  return static_cast<double>(equal) / kPairs;
}

TEST(HadamardRotation, BasisVectorsNeedThreeRounds) {
  constexpr int kSeeds = 200;
  int without_tie = 0;
  std::int64_t equal_of_three = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    // After two rounds the images of the basis vectors are permutations of one vector (up to
    // signs); where its largest coordinate is unique, no two basis vectors ever collide.
    const BasisImages two(2, seed);
    EXPECT_EQ(two.magnitudes.size(), 1u);
    if (!two.tie) {
      ++without_tie;
      EXPECT_EQ(two.equal_pairs, 0);
    }
    const BasisImages three(3, seed);
    EXPECT_GT(three.magnitudes.size(), 32u);
    equal_of_three += three.equal_pairs;
  }
  EXPECT_GE(without_tie, kSeeds / 10);
  const double expected = kSeeds * 2016 * collision_of_orthogonal_vectors();
  EXPECT_NEAR(static_cast<double>(equal_of_three), expected, 0.12 * expected);
}

TEST(HadamardRotation, FoldedTransformIsTheFullOne) {
  const Rotation full(RotationKind::kHadamard, 128, 128, {.seed = 3});
  const Rotation folded(RotationKind::kHadamard, 128, 16, {.seed = 3});
  const auto token = thinwire::testing::standard_normal(128, 1);
  const auto all = rotate_ref(full, token);
  const auto some = rotate_ref(folded, token);
  double norm = 0;
  for (const float y : all) norm += double{y} * y;
  double token_norm = 0;
  for (const float x : token) token_norm += double{x} * x;
  EXPECT_NEAR(norm / token_norm, 128.0 * 128 * 128, 1e-3 * norm / token_norm);
  ASSERT_EQ(some.size(), 16u);
  for (std::size_t i = 0; i < some.size(); ++i) {
    EXPECT_NEAR(some[i], all[i], 1e-5 * std::sqrt(norm)) << i;
  }
}

TEST(Rotation, IsAFunctionOfItsSeedAlone) {
  const auto tokens = thinwire::testing::standard_normal(32 * 200, 2);
  const HashOptions base{.hashes = 4, .hash_dim = 16, .seed = 7, .layer = 2};
  const auto codes = [&](auto change, RotationKind kind) {
    HashOptions options = base;
    options.rotation = kind;
    change(options);
    return hash_all(CrossPolytopeHash(32, options), tokens);
  };
  for (const auto kind : {RotationKind::kHadamard, RotationKind::kGaussian}) {
    const auto same = codes([](HashOptions&) {}, kind);
    EXPECT_EQ(codes([](HashOptions&) {}, kind), same);
    EXPECT_NE(codes([](HashOptions& o) { o.seed = 8; }, kind), same);
    EXPECT_NE(codes([](HashOptions& o) { o.layer = 3; }, kind), same);
    EXPECT_NE(codes([](HashOptions& o) { o.generation = 1; }, kind), same);
    // The first hashes do not depend on how many there are.
    const auto more = codes([](HashOptions& o) { o.hashes = 6; }, kind);
    for (std::size_t t = 0; t < 200; ++t) {
      EXPECT_TRUE(std::equal(same.begin() + static_cast<std::ptrdiff_t>(4 * t),
                             same.begin() + static_cast<std::ptrdiff_t>(4 * t + 4),
                             more.begin() + static_cast<std::ptrdiff_t>(6 * t)));
    }
  }
}

TEST(Rotation, GaussianEntriesAreStandardNormalAndKnown) {
  const Rotation rotation(RotationKind::kGaussian, 512, 64, {.seed = 1});
  double sum = 0, squares = 0, fourth = 0;
  for (const double x : rotation.matrix()) {
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  const auto n = static_cast<double>(rotation.matrix().size());
  EXPECT_NEAR(sum / n, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3, 4 * std::sqrt(96 / n));
}

TEST(CrossPolytope, TiesGoToTheLowerIndexAndTheSignCounts) {
  EXPECT_EQ(nearest_vertex_ref(std::vector<float>{1, -2, 2}), 3);
  EXPECT_EQ(nearest_vertex_ref(std::vector<float>{1, 2, -2}), 2);
  EXPECT_EQ(nearest_vertex_ref(std::vector<float>{-0.0f, 0.0f}), 0);
  const CrossPolytopeHash hash(16, {.hashes = 2});
  EXPECT_EQ(hash_all(hash, std::vector<float>(16, 0.0f)), (std::vector<HashCode>{0, 0}));
  // x and -x are at opposite vertices, and a positive factor changes nothing.
  auto tokens = thinwire::testing::standard_normal(16, 3);
  const auto plus = hash_all(hash, tokens);
  for (float& x : tokens) x *= -4;
  const auto minus = hash_all(hash, tokens);
  for (std::size_t h = 0; h < 2; ++h) EXPECT_EQ(plus[h] ^ 1, minus[h]);
}

TEST(CrossPolytope, NonFiniteTokensAreUnhashable) {
  const float kBad[] = {std::numeric_limits<float>::quiet_NaN(),
                        std::numeric_limits<float>::infinity(), 3e38f};
  for (const auto kind : {RotationKind::kHadamard, RotationKind::kGaussian}) {
    const CrossPolytopeHash hash(24, {.hashes = 3, .hash_dim = 8, .rotation = kind});
    for (const float bad : kBad) {
      std::vector<float> tokens = thinwire::testing::standard_normal(3 * 24, 4);
      std::fill_n(tokens.begin() + 24, 24, bad);  // every element: 3e38 must overflow
      const auto codes = hash_all(hash, tokens);
      for (std::size_t h = 0; h < 3; ++h) {
        EXPECT_NE(codes[h], kUnhashable);
        if (kind == RotationKind::kHadamard || !std::isfinite(bad)) {
          EXPECT_EQ(codes[3 + h], kUnhashable) << bad;
        }
        EXPECT_NE(codes[6 + h], kUnhashable);
      }
    }
  }
}

TEST(CrossPolytope, RefusesWhatCannotWork) {
  EXPECT_THROW(CrossPolytopeHash(8, {.hashes = 0}), InvalidArgument);
  EXPECT_THROW(CrossPolytopeHash(8, {.hashes = 65, .hash_dim = 8}), InvalidArgument);
  EXPECT_THROW(CrossPolytopeHash(8, {.hash_dim = 9}), InvalidArgument);
  EXPECT_THROW(CrossPolytopeHash(0, {}), InvalidArgument);
  const CrossPolytopeHash hash(16, {.hashes = 2});
  std::vector<HashCode> codes(2);
  EXPECT_THROW(hash.hash(std::vector<float>(17), codes), InvalidArgument);
  EXPECT_THROW(hash.hash(std::vector<float>(32), codes), InvalidArgument);
}

}  // namespace
}  // namespace thinwire::lsh
