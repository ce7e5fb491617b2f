// Clustering: first occurrence, nested prefixes, the radius bound, the choice of the prefix.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "thinwire/common/error.h"
#include "thinwire/compressors/lsh/cluster.h"
#include "thinwire/compressors/lsh/row_kernels.h"
#include "thinwire/compressors/lsh/row_kernels_ref.h"
#include "thinwire/tests/support/simd_targets.h"

namespace thinwire::lsh {
namespace {

constexpr std::int64_t kDim = 24;
constexpr double kNoBound = std::numeric_limits<double>::infinity();

// Tokens around a few centres, so that hashes collide; rows in `groups` groups.
struct Example {
  std::vector<float> tokens;
  std::vector<std::int32_t> token;
  std::vector<std::int64_t> group_begin;

  Example(std::size_t count, std::size_t groups, float spread, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centres(10 * kDim);
    for (float& x : centres) x = normal(engine);
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t centre = engine() % 10;
      for (std::size_t j = 0; j < kDim; ++j) {
        tokens.push_back(centres[centre * kDim + j] + spread * normal(engine));
      }
    }
    group_begin.push_back(0);
    for (std::size_t g = 0; g < groups; ++g) {
      for (std::size_t t = 0; t < count; ++t) {
        if (engine() % 2 == 0) token.push_back(static_cast<std::int32_t>(t));
      }
      group_begin.push_back(static_cast<std::int64_t>(token.size()));
    }
  }

  GroupedRows rows() const { return {token, group_begin}; }

  std::vector<Labels> prefixes(int hashes = 6) const {
    const CrossPolytopeHash hash(kDim, {.hashes = hashes, .hash_dim = 16, .seed = 1});
    std::vector<HashCode> codes(tokens.size() / kDim * static_cast<std::size_t>(hashes));
    hash.hash(tokens, codes);
    return prefix_labels(codes, hashes, rows());
  }

  double element(std::size_t row, std::size_t j) const {
    return tokens[static_cast<std::size_t>(token[row]) * kDim + j];
  }
  std::size_t count() const { return token.size(); }
};

PrefixChoice fixed(int prefix) {
  return {.prefix = prefix};
}

// Largest |x - centroid| / |x| and the relative error, computed anew from the outputs.
std::pair<double, double> radius_and_error(const Example& example, const Labels& labels,
                                           const std::vector<float>& centroids) {
  double worst = 0, error_sum = 0, norm_sum = 0;
  for (std::size_t r = 0; r < example.count(); ++r) {
    double error = 0, norm = 0;
    for (std::size_t j = 0; j < kDim; ++j) {
      const double x = example.element(r, j);
      const double c = centroids[static_cast<std::size_t>(labels.of_row[r]) * kDim + j];
      error += (x - c) * (x - c);
      norm += x * x;
    }
    worst = std::max(worst, std::sqrt(error / norm));
    error_sum += error;
    norm_sum += norm;
  }
  return {worst, std::sqrt(error_sum / norm_sum)};
}

TEST(PrefixLabels, AreEqualKeysNumberedByFirstOccurrence) {
  const std::vector<HashCode> codes = {1, 2, 1, 3, 1, 2, 5, 2};  // four tokens, two hashes
  const std::vector<std::int32_t> token = {0, 1, 2, 3, 2, 0};
  const std::vector<std::int64_t> group_begin = {0, 4, 4, 6};
  const auto prefixes = prefix_labels(codes, 2, {token, group_begin});
  ASSERT_EQ(prefixes.size(), 3u);
  EXPECT_EQ(prefixes[0].of_row, (std::vector<std::int32_t>{0, 0, 0, 0, 1, 1}));
  EXPECT_EQ(prefixes[1].of_row, (std::vector<std::int32_t>{0, 0, 0, 1, 2, 2}));
  EXPECT_EQ(prefixes[2].of_row, (std::vector<std::int32_t>{0, 1, 0, 2, 3, 3}));
  EXPECT_EQ(prefixes[2].count, 4);
}

TEST(PrefixLabels, WideKeysAreComparedInFull) {
  // 64 hashes of 14 bits: tokens that differ in the last code only.
  std::vector<HashCode> codes(2 * 64, 0x3FFF);
  codes.back() = 0x3FFE;
  const std::vector<std::int32_t> token = {0, 1, 0};
  const std::vector<std::int64_t> group_begin = {0, 3};
  const auto prefixes = prefix_labels(codes, 64, {token, group_begin});
  EXPECT_EQ(prefixes[63].count, 1);
  EXPECT_EQ(prefixes[64].of_row, (std::vector<std::int32_t>{0, 1, 0}));
}

TEST(PrefixLabels, MatchAMapOverTheWholeKey) {
  const Example example(700, 3, 0.3f, 1);
  const CrossPolytopeHash hash(kDim, {.hashes = 6, .hash_dim = 16, .seed = 1});
  std::vector<HashCode> codes(700 * 6);
  hash.hash(example.tokens, codes);
  const auto prefixes = example.prefixes();
  for (std::size_t p = 0; p <= 6; ++p) {
    std::map<std::pair<std::size_t, std::vector<HashCode>>, std::int32_t> numbers;
    std::size_t group = 0;
    for (std::size_t r = 0; r < example.count(); ++r) {
      while (static_cast<std::int64_t>(r) >= example.group_begin[group + 1]) ++group;
      const HashCode* token = codes.data() + static_cast<std::size_t>(example.token[r]) * 6;
      const auto number = static_cast<std::int32_t>(numbers.size());
      const auto key = std::pair{group, std::vector<HashCode>(token, token + p)};
      ASSERT_EQ(prefixes[p].of_row[r], numbers.try_emplace(key, number).first->second)
          << "prefix " << p << ", row " << r;
    }
    EXPECT_EQ(prefixes[p].count, static_cast<std::int32_t>(numbers.size()));
    const Labels alone = labels_of_prefix(codes, 6, static_cast<int>(p), example.rows());
    EXPECT_EQ(alone.of_row, prefixes[p].of_row);
    EXPECT_EQ(alone.count, prefixes[p].count);
  }
  codes[3 * 6] = kUnhashable;
  const auto spoiled = prefix_labels(codes, 6, example.rows());
  for (int p = 0; p <= 6; ++p) {
    EXPECT_EQ(labels_of_prefix(codes, 6, p, example.rows()).of_row,
              spoiled[static_cast<std::size_t>(p)].of_row);
  }
  EXPECT_THROW(labels_of_prefix(codes, 6, 7, example.rows()), InvalidArgument);
}

TEST(RowKernels, EqualTheScalarSumsOnEveryTarget) {
  std::mt19937 engine(4);
  std::normal_distribution<double> normal;
  for (const std::size_t n : {0, 1, 7, 8, 9, 15, 16, 31, 64, 97}) {
    std::vector<double> x(n + 1), y(n + 1);
    for (double& value : x) value = normal(engine);
    for (double& value : y) value = normal(engine);
    const std::vector<float> x_narrow(x.begin(), x.end()), y_narrow(y.begin(), y.end());
    thinwire::testing::for_each_simd_target([&](std::string_view target) {
      // From the second element on: no alignment is promised.
      const auto expect = [&](const auto& a, const auto& b) {
        EXPECT_EQ(squared_norm(a.data() + 1, n), squared_norm_ref(a.data() + 1, n))
            << target << " " << n;
        EXPECT_EQ(squared_distance(a.data() + 1, b.data() + 1, n),
                  squared_distance_ref(a.data() + 1, b.data() + 1, n))
            << target << " " << n;
        std::vector<double> sums(n, 0.5);
        add_row(a.data() + 1, sums.data(), n);
        for (std::size_t i = 0; i < n; ++i) {
          EXPECT_EQ(sums[i], 0.5 + static_cast<double>(a[i + 1])) << target << " " << i;
        }
      };
      expect(x, y);
      expect(x_narrow, y_narrow);
      EXPECT_EQ(squared_distance(x_narrow.data(), y.data(), n),
                squared_distance_ref(x_narrow.data(), y.data(), n));
    });
  }
}

TEST(Prefixes, RowsNeverDecreaseAndErrorNeverIncreases) {
  for (const float spread : {0.02f, 0.3f, 1.0f}) {
    const Example example(600, 3, spread, 2);
    const auto prefixes = example.prefixes(8);
    const auto errors = prefix_errors<float>(example.tokens, kDim, example.rows(), prefixes);
    for (std::size_t p = 0; p + 1 < prefixes.size(); ++p) {
      EXPECT_LE(prefixes[p].count, prefixes[p + 1].count);
      EXPECT_GE(errors[p], errors[p + 1]);
    }
    EXPECT_LT(prefixes.front().count, prefixes.back().count);
    for (std::size_t p = 0; p < prefixes.size(); ++p) {  // against the definition
      std::vector<float> centroids;
      const auto result = cluster_rows<float>(
          example.tokens, kDim, example.rows(), prefixes,
          {.choice = fixed(static_cast<int>(p)), .radius = kNoBound}, centroids);
      const double expected = radius_and_error(example, result.labels, centroids).second;
      EXPECT_NEAR(errors[p], expected, 1e-6 * errors.front()) << "prefix " << p;
      EXPECT_NEAR(result.relative_error, expected, 1e-12);
    }
  }
}

TEST(Centroids, AreThePlainMeansInRowOrder) {
  const Example example(300, 2, 0.2f, 3);
  std::vector<float> centroids;
  const auto result = cluster_rows<float>(example.tokens, kDim, example.rows(), example.prefixes(),
                                          {.choice = fixed(2), .radius = kNoBound}, centroids);
  std::vector<double> sums(centroids.size(), 0.0);
  std::vector<std::int32_t> size(static_cast<std::size_t>(result.labels.count), 0);
  for (std::size_t r = 0; r < example.count(); ++r) {
    const auto c = static_cast<std::size_t>(result.labels.of_row[r]);
    for (std::size_t j = 0; j < kDim; ++j) sums[c * kDim + j] += example.element(r, j);
    ++size[c];
  }
  EXPECT_EQ(size, result.size);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    EXPECT_EQ(centroids[i], static_cast<float>(sums[i] / size[i / kDim]));
  }
  EXPECT_EQ(result.group_clusters[0] + result.group_clusters[1], result.labels.count);
}

TEST(RadiusBound, HoldsForTheFinalCentroids) {
  for (const double radius : {0.0, 0.05, 0.2, 0.4, 0.9}) {
    for (const float spread : {0.05f, 0.4f, 1.5f}) {
      const Example example(500, 2, spread, 4);
      for (const int prefix : {0, 1, 6}) {
        std::vector<float> centroids;
        const auto result =
            cluster_rows<float>(example.tokens, kDim, example.rows(), example.prefixes(),
                                {.choice = fixed(prefix), .radius = radius}, centroids);
        const double worst = radius_and_error(example, result.labels, centroids).first;
        EXPECT_LE(worst, radius + 1e-12);
        EXPECT_NEAR(result.worst_radius, worst, 1e-12);
        EXPECT_LE(result.mean_radius, result.worst_radius);
        // Rows still are numbered by first occurrence, group after group.
        std::int32_t next = 0;
        for (const std::int32_t label : result.labels.of_row) {
          ASSERT_LE(label, next);
          next = std::max(next, label + 1);
        }
        EXPECT_EQ(next, result.labels.count);
      }
    }
  }
}

TEST(RadiusBound, OneOutlierLeavesTheOthersTogether) {
  // Nine tokens near e_0 and one at 100 e_0 + 100 e_1 in a single group at prefix 0: the first
  // mean is far from all ten, so a bound on the first mean alone would split off everything.
  std::vector<float> tokens(10 * kDim, 0.0f);
  for (std::size_t t = 0; t < 10; ++t) tokens[t * kDim] = 1.0f;
  tokens[9 * kDim] = 1.5f;
  tokens[9 * kDim + 1] = 1.5f;
  std::vector<std::int32_t> token(10);
  for (std::int32_t t = 0; t < 10; ++t) token[static_cast<std::size_t>(t)] = t;
  const std::vector<std::int64_t> group_begin = {0, 10};
  const std::vector<HashCode> codes(10, 0);
  std::vector<float> centroids;
  const auto result = cluster_rows<float>(tokens, kDim, {token, group_begin},
                                          prefix_labels(codes, 1, {token, group_begin}),
                                          {.choice = fixed(1), .radius = 0.4}, centroids);
  EXPECT_EQ(result.labels.count, 2);
  EXPECT_EQ(result.size, (std::vector<std::int32_t>{9, 1}));
  EXPECT_EQ(result.worst_radius, 0);  // recentred without the outlier
}

TEST(RadiusBound, ADissolvedClusterLosesNothing) {
  // Every mean is more than twice the smallest row that is left and less than twice the next one,
  // so eight recentrings take away one row each. The last two rows are alone then, too.
  const std::vector<float> tokens = {0.2f,  0.21f, 0.225f, 0.24f, 0.26f,
                                     0.29f, 0.33f, 0.39f,  1.0f,  1.0f};
  std::vector<std::int32_t> token(10);
  for (std::int32_t t = 0; t < 10; ++t) token[static_cast<std::size_t>(t)] = t;
  const std::vector<std::int64_t> group_begin = {0, 10};
  const std::vector<HashCode> codes(10, 0);
  std::vector<float> centroids;
  const auto result = cluster_rows<float>(tokens, 1, {token, group_begin},
                                          prefix_labels(codes, 1, {token, group_begin}),
                                          {.choice = fixed(1), .radius = 1}, centroids);
  EXPECT_EQ(result.labels.count, 10);
  EXPECT_EQ(centroids, tokens);
  EXPECT_EQ(result.worst_radius, 0);
  EXPECT_EQ(result.relative_error, 0);
}

TEST(Clusters, EqualTokensGiveOneRowThatIsTheToken) {
  std::mt19937 engine(5);
  std::normal_distribution<float> normal;
  std::vector<float> one(kDim);
  for (float& x : one) x = normal(engine);
  for (const std::int64_t n : {1, 3, 1000}) {
    Example example(0, 1, 0, 0);
    example.token.clear();
    for (std::int64_t t = 0; t < n; ++t) {
      example.tokens.insert(example.tokens.end(), one.begin(), one.end());
      example.token.push_back(static_cast<std::int32_t>(t));
    }
    example.group_begin = {0, n};
    std::vector<float> centroids;
    const auto result =
        cluster_rows<float>(example.tokens, kDim, example.rows(), example.prefixes(),
                            {.choice = {}, .radius = 0}, centroids);
    EXPECT_EQ(result.labels.count, 1);
    EXPECT_EQ(centroids, one);
    EXPECT_EQ(result.worst_radius, 0);
  }
}

TEST(Clusters, NonFiniteTokensStayAlone) {
  Example example(200, 2, 0.05f, 6);
  const float kBad[] = {std::numeric_limits<float>::quiet_NaN(),
                        std::numeric_limits<float>::infinity()};
  for (std::size_t t = 0; t < 20; ++t) example.tokens[t * kDim + t] = kBad[t % 2];
  for (const int prefix : {0, 3, 6}) {
    std::vector<float> centroids;
    const auto result =
        cluster_rows<float>(example.tokens, kDim, example.rows(), example.prefixes(),
                            {.choice = fixed(prefix), .radius = kNoBound}, centroids);
    for (std::size_t r = 0; r < example.count(); ++r) {
      const auto c = static_cast<std::size_t>(result.labels.of_row[r]);
      const float* centroid = centroids.data() + c * kDim;
      if (example.token[r] < 20) {
        const float* token =
            example.tokens.data() + static_cast<std::size_t>(example.token[r]) * kDim;
        EXPECT_EQ(result.size[c], 1);
        EXPECT_EQ(std::memcmp(centroid, token, kDim * sizeof(float)), 0);
      } else {
        for (std::size_t j = 0; j < kDim; ++j) ASSERT_TRUE(std::isfinite(centroid[j]));
      }
    }
    EXPECT_TRUE(std::isfinite(result.worst_radius));
    EXPECT_TRUE(std::isfinite(result.relative_error));
  }
}

TEST(PrefixChoice, MeetsItsTarget) {
  const Example example(600, 2, 0.4f, 7);
  const auto prefixes = example.prefixes();
  const auto errors = prefix_errors<float>(example.tokens, kDim, example.rows(), prefixes);
  std::vector<float> centroids;
  const auto chosen = [&](PrefixChoice choice, double radius = kNoBound) {
    return cluster_rows<float>(example.tokens, kDim, example.rows(), prefixes,
                               {.choice = choice, .radius = radius}, centroids);
  };
  for (std::size_t p = 0; p <= 6; ++p) {
    const auto by_error = chosen({.rule = PrefixChoice::Rule::kError, .target = errors[p]});
    EXPECT_LE(by_error.prefix, static_cast<int>(p));
    EXPECT_LE(errors[static_cast<std::size_t>(by_error.prefix)], errors[p]);
    const double share = (prefixes[p].count + 0.5) / static_cast<double>(example.count());
    const auto by_rows = chosen({.rule = PrefixChoice::Rule::kRows, .target = share});
    EXPECT_GE(by_rows.prefix, static_cast<int>(p));
    EXPECT_EQ(by_rows.labels.count, prefixes[p].count);
  }
  EXPECT_EQ(chosen({.rule = PrefixChoice::Rule::kError, .target = 0}).prefix, 6);
  EXPECT_EQ(chosen({.rule = PrefixChoice::Rule::kRows, .target = 0}).prefix, 0);

  std::int32_t fewest = std::numeric_limits<std::int32_t>::max();
  for (int p = 0; p <= 6; ++p) fewest = std::min(fewest, chosen(fixed(p), 0.4).labels.count);
  const auto best = chosen({.rule = PrefixChoice::Rule::kFewestRows}, 0.4);
  EXPECT_EQ(best.labels.count, fewest);
  EXPECT_LE(radius_and_error(example, best.labels, centroids).first, 0.4 + 1e-12);
}

TEST(Duplicates, AreRowsWithEqualBytesInOneGroup) {
  const std::vector<float> tokens = {1, 2, 3, 4, 1, 2, 0.0f, 5, -0.0f, 5};  // five tokens of two
  const std::vector<std::int32_t> token = {0, 1, 2, 3, 4, 2, 0, 0};
  const std::vector<std::int64_t> group_begin = {0, 5, 8};
  const auto labels = duplicate_labels(std::as_bytes(std::span(tokens)), 8, {token, group_begin});
  EXPECT_EQ(labels.of_row, (std::vector<std::int32_t>{0, 1, 0, 2, 3, 4, 4, 4}));
  EXPECT_EQ(labels.count, 5);
}

TEST(Clusters, EmptyInputAndEmptyGroups) {
  const std::vector<std::int64_t> group_begin = {0, 0, 0};
  const GroupedRows rows{{}, group_begin};
  std::vector<float> centroids;
  for (const auto rule : {PrefixChoice::Rule::kFixed, PrefixChoice::Rule::kError,
                          PrefixChoice::Rule::kRows, PrefixChoice::Rule::kFewestRows}) {
    const auto result = cluster_rows<float>({}, kDim, rows, prefix_labels({}, 6, rows),
                                            {.choice = {.rule = rule}}, centroids);
    EXPECT_EQ(result.labels.count, 0);
    EXPECT_EQ(result.group_clusters, (std::vector<std::int64_t>{0, 0}));
    EXPECT_EQ(result.relative_error, 0);
    EXPECT_TRUE(centroids.empty());
  }
}

TEST(Clusters, RefuseSizesThatDoNotFit) {
  const std::vector<HashCode> codes(4, 0);
  const std::vector<std::int64_t> group_begin = {0, 1};
  const std::vector<std::int32_t> outside = {4}, inside = {3};
  EXPECT_THROW(prefix_labels(codes, 1, {outside, group_begin}), InvalidArgument);
  EXPECT_THROW(prefix_labels(codes, 3, {inside, group_begin}), InvalidArgument);
  const std::vector<std::int64_t> short_groups = {0, 0};
  EXPECT_THROW(prefix_labels(codes, 1, {inside, short_groups}), InvalidArgument);
  const auto labels = prefix_labels(codes, 1, {inside, group_begin});
  std::vector<float> centroids;
  EXPECT_THROW(
      cluster_rows<float>(std::vector<float>(7), 2, {inside, group_begin}, labels, {}, centroids),
      InvalidArgument);
  EXPECT_THROW(cluster_rows<float>(std::vector<float>(8), 2, {inside, group_begin}, labels,
                                   {.choice = {}, .radius = -1}, centroids),
               InvalidArgument);
}

}  // namespace
}  // namespace thinwire::lsh
