#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "payloads.h"

namespace thinwire {
namespace {

// 1, 2, 3, …: an element tells its place.
std::vector<float> counting(std::size_t n) {
  std::vector<float> x(n);
  std::iota(x.begin(), x.end(), 1.0f);
  return x;
}

std::vector<std::size_t> chosen(const Codec& codec, std::size_t n, const RandomKey& key) {
  const auto y = testing::round_trip(codec, counting(n), key);
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < n; ++i) {
    if (y[i] != 0) places.push_back(i);
  }
  return places;
}

TEST(Randomk, ChoosesOneElementOfEveryCell) {
  for (const auto& [n, k] : {std::pair<std::size_t, std::size_t>{100, 10}, {1000, 333}, {7, 3}}) {
    const auto codec = make_codec(concat("randomk(density=", (double(k) + 0.5) / double(n), ")"));
    EXPECT_EQ(codec->max_compressed_bytes(static_cast<std::int64_t>(n), DType::kFloat32), 4 * k);
    for (std::uint64_t step = 0; step < 50; ++step) {
      const auto places = chosen(*codec, n, {.step = step});
      ASSERT_EQ(places.size(), k);
      for (std::size_t j = 0; j < k; ++j) {
        ASSERT_GE(places[j], j * n / k);
        ASSERT_LT(places[j], (j + 1) * n / k);
      }
    }
  }
}

TEST(Randomk, TheChoiceIsTheSameOnAllRanksAndNewAtEveryStep) {
  const auto codec = make_codec("randomk(density=0.1)");
  const auto base = chosen(*codec, 1000, {});
  EXPECT_EQ(chosen(*codec, 1000, {.rank = 5}), base);
  EXPECT_NE(chosen(*codec, 1000, {.seed = 1}), base);
  EXPECT_NE(chosen(*codec, 1000, {.step = 1}), base);
  EXPECT_NE(chosen(*codec, 1000, {.layer = 1}), base);
}

TEST(Randomk, PayloadsAddUpToThePayloadOfTheSum) {
  const auto codec = make_codec("randomk(density=0.2)");
  ASSERT_TRUE(codec->traits().summable);
  std::vector<float> a = counting(500), b(500), total(500);
  for (std::size_t i = 0; i < b.size(); ++i) {
    b[i] = static_cast<float>(i * i % 97);
    total[i] = a[i] + b[i];
  }
  const auto mine = testing::compressed(*codec, view_of(std::span(std::as_const(a))), {.rank = 0});
  const auto other = testing::compressed(*codec, view_of(std::span(std::as_const(b))), {.rank = 1});
  std::vector<float> x(mine.size() / 4), y(x.size());
  std::memcpy(x.data(), mine.data(), mine.size());
  std::memcpy(y.data(), other.data(), other.size());
  for (std::size_t j = 0; j < x.size(); ++j) x[j] += y[j];
  std::vector<float> decoded(500);
  codec->decompress(std::as_bytes(std::span(x)), {}, view_of(std::span(decoded)),
                    WriteMode::kAssign);
  EXPECT_EQ(decoded, testing::round_trip(*codec, total));
}

TEST(Randomk, UnbiasedMultipliesByTheSizeOfTheCell) {
  const auto plain = testing::round_trip(*make_codec("randomk(density=0.3)"), counting(10));
  const auto scaled =
      testing::round_trip(*make_codec("randomk(density=0.3, unbiased=on)"), counting(10));
  const float sizes[] = {3, 3, 3, 3, 3, 3, 4, 4, 4, 4};  // cells [0, 3) [3, 6) [6, 10)
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(scaled[i], plain[i] * sizes[i]) << i;
}

TEST(Randomk, EveryElementOfACellIsAsLikely) {
  const auto codec = make_codec("randomk(density=0.1)");
  constexpr int kSteps = 20000;
  std::vector<int> hits(40);
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    for (const std::size_t place : chosen(*codec, 40, {.step = step})) ++hits[place];
  }
  for (const int count : hits) {
    EXPECT_NEAR(count, kSteps / 10.0, 5 * std::sqrt(kSteps * 0.09));
  }
}

TEST(Randomk, DensityOneSendsEverything) {
  const auto x = testing::normal_values(333, 41);
  EXPECT_EQ(testing::round_trip(*make_codec("randomk(density=1)"), x), x);
}

TEST(Randomk, AnElementThatIsNotChosenStillPoisons) {
  std::vector<float> x(1000, 1.0f);
  x[777] = std::numeric_limits<float>::infinity();
  for (const float value : testing::round_trip(*make_codec("randomk(density=0.01)"), x)) {
    ASSERT_TRUE(std::isnan(value));
  }
}

}  // namespace
}  // namespace thinwire
