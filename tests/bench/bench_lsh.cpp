// Speed of cross-polytope hashing and of clustering on one core, in tokens per second, for every
// SIMD target. Usage: bench_lsh [dimension] [hashes] [hash dimension]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "thinwire/compressors/lsh/cluster.h"
#include "thinwire/tests/support/simd_targets.h"

namespace {

using namespace thinwire::lsh;

constexpr std::size_t kTokens = 8192;
constexpr int kRepeats = 9;

// Median seconds of one call.
template <typename Body>
double median_seconds(const Body& body) {
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return seconds[kRepeats / 2];
}

void print(const char* what, std::string_view target, double seconds) {
  std::printf("%-24s %-8.*s %10.0f tokens/s\n", what, static_cast<int>(target.size()),
              target.data(), kTokens / seconds);
}

}  // namespace

int main(int argc, char** argv) {
  const auto dim = static_cast<std::size_t>(argc > 1 ? std::atoi(argv[1]) : 512);
  const int hashes = argc > 2 ? std::atoi(argv[2]) : 6;
  const int hash_dim = argc > 3 ? std::atoi(argv[3]) : 16;

  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> centres(64 * dim);
  for (float& x : centres) x = normal(engine);
  std::vector<float> tokens(kTokens * dim);
  for (std::size_t t = 0; t < kTokens; ++t) {
    const std::size_t centre = engine() % 64;
    for (std::size_t j = 0; j < dim; ++j) {
      tokens[t * dim + j] = centres[centre * dim + j] + 0.2f * normal(engine);
    }
  }
  std::vector<HashCode> codes(kTokens * static_cast<std::size_t>(hashes));
  std::printf("%zu tokens of dimension %zu, %d hashes of dimension %d\n", kTokens, dim, hashes,
              hash_dim);

  for (const auto kind : {RotationKind::kGaussian, RotationKind::kHadamard}) {
    const CrossPolytopeHash hash(static_cast<std::int64_t>(dim),
                                 {.hashes = hashes, .hash_dim = hash_dim, .rotation = kind});
    thinwire::testing::for_each_simd_target([&](std::string_view target) {
      print(kind == RotationKind::kHadamard ? "hash, Hadamard" : "hash, Gaussian", target,
            median_seconds([&] { hash.hash(tokens, codes); }));
    });
  }

  std::vector<std::int32_t> token(kTokens);
  std::iota(token.begin(), token.end(), 0);
  const std::vector<std::int64_t> group_begin = {0, kTokens};
  const GroupedRows rows{token, group_begin};
  std::vector<Labels> prefixes;
  print("labels of all prefixes", "-",
        median_seconds([&] { prefixes = prefix_labels(codes, hashes, rows); }));
  std::vector<float> centroids;
  Clustering result;
  print("clusters, radius 0.4", "-", median_seconds([&] {
          result = cluster_rows<float>(tokens, static_cast<std::int64_t>(dim), rows, prefixes,
                                       {.choice = {.prefix = hashes}, .radius = 0.4}, centroids);
        }));
  std::printf("%d of %zu rows left, worst radius %.3f\n", result.labels.count, kTokens,
              result.worst_radius);
  return 0;
}
