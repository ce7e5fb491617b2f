#include "thinwire/torch_ext/adaptive/gradient_statistics.h"

#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "thinwire/tests/support/rank_threads.h"

namespace thinwire {
namespace {

using testing::RankContext;
using testing::run_ranks;

const std::vector<LayerInfo> kLayers = {{"a", {7}}, {"b", {60, 50}}, {"c", {30, 10}}, {"d", {1}}};

std::int64_t numel_of(const LayerInfo& layer) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : layer.shape) numel *= extent;
  return numel;
}

// A bucket with the layers in reverse, as the Reducer makes them, and one more that nobody asked
// for.
comm::Bucket bucket_of(int rank, int step, at::ScalarType type = at::kFloat) {
  comm::Bucket bucket;
  std::int64_t offset = 5;
  for (auto layer = kLayers.rbegin(); layer != kLayers.rend(); ++layer) {
    bucket.layers.push_back({layer->name, offset, layer->shape});
    offset += numel_of(*layer);
  }
  bucket.layers.push_back({"other", offset, {9}});
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(10 * step + rank));
  bucket.buffer = at::randn({offset + 9}, generator, at::kFloat).to(type);
  return bucket;
}

std::vector<float> layer_in(const comm::Bucket& bucket, const std::string& name) {
  for (const auto& layer : bucket.layers) {
    if (layer.name != name) continue;
    const at::Tensor part = bucket.buffer.narrow(0, layer.offset, layer.numel()).to(at::kFloat);
    return {part.const_data_ptr<float>(), part.const_data_ptr<float>() + part.numel()};
  }
  ADD_FAILURE() << name;
  return {};
}

// The definition, without what rounding the sums does.
std::vector<float> mean_of(const std::string& name, int world, int steps, at::ScalarType type) {
  std::vector<float> total(layer_in(bucket_of(0, 0, type), name).size());
  for (int rank = 0; rank < world; ++rank) {
    for (int step = 0; step < steps; ++step) {
      const auto next = layer_in(bucket_of(rank, step, type), name);
      for (std::size_t i = 0; i < next.size(); ++i) total[i] += next[i];
    }
  }
  for (float& x : total) x /= static_cast<float>(world * steps);
  return total;
}

double relative_error(const std::vector<float>& values, const std::vector<float>& exact) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(values[i] - exact[i], 2);
    size += std::pow(exact[i], 2);
  }
  return std::sqrt(error / size);
}

class StatisticsOnRanks : public ::testing::TestWithParam<std::tuple<int, at::ScalarType>> {};

TEST_P(StatisticsOnRanks, AreTheMeanOverStepsAndRanksToTheirEightBits) {
  const auto [world, type] = GetParam();
  constexpr int kSteps = 3;
  std::vector<std::atomic<int>> owners(kLayers.size());
  run_ranks(world, [&, world = world, type = type](RankContext& ctx) {
    std::vector<std::vector<float>> before(kLayers.size());
    GradientStatistics statistics(kLayers, ctx.rank, world);
    for (int round = 0; round < 2; ++round) {
      statistics.reset();
      for (int step = 0; step < kSteps; ++step) {
        statistics.add(bucket_of(ctx.rank, step, type));
        statistics.finish_step();
      }
      const std::uint64_t sent = statistics.exchange(*ctx.group, 1);
      EXPECT_EQ(world == 1, sent == 0);
      for (std::size_t i = 0; i < kLayers.size(); ++i) {
        if (statistics.owner(i) != ctx.rank) continue;
        ++owners[i];
        const std::vector<float> values = statistics.values(i);
        // Sums of three normal numbers on each rank, each rounded three times by 2^-8 of its size
        // at most, then the mean once.
        EXPECT_THAT(values, ::testing::Pointwise(::testing::FloatNear(0.1f),
                                                 mean_of(kLayers[i].name, world, kSteps, type)))
            << kLayers[i].name;
        EXPECT_LT(relative_error(values, mean_of(kLayers[i].name, world, kSteps, type)), 0.01)
            << kLayers[i].name;
        if (round == 1) {
          EXPECT_EQ(values, before[i]) << "the same steps, other bits";
        }
        before[i] = values;
      }
    }
  });
  for (const auto& owned : owners) EXPECT_EQ(owned, 2) << "one owner in each of two rounds";
}

INSTANTIATE_TEST_SUITE_P(Worlds, StatisticsOnRanks,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4),
                                            ::testing::Values(at::kFloat, at::kBFloat16,
                                                              at::kDouble)));

TEST(GradientStatistics, TakesTwoBytesAnElementWhateverTheWorldAndOnlyOnceItSeesThem) {
  for (const int world : {1, 4}) {
    GradientStatistics statistics(kLayers, 0, world);
    EXPECT_EQ(statistics.bytes(), 0u);
    statistics.add(bucket_of(0, 0));
    EXPECT_EQ(statistics.bytes(), 2u * (7 + 3000 + 300 + 1));
    statistics.reset();
    EXPECT_EQ(statistics.bytes(), 0u);
  }
}

TEST(GradientStatistics, LayersLargerThanOneMessage) {
  const std::vector<LayerInfo> layers = {{"large", {1200, 1000}}, {"small", {100, 10}}};
  run_ranks(2, [&](RankContext& ctx) {
    GradientStatistics statistics(layers, ctx.rank, 2);
    comm::Bucket bucket{0,
                        at::empty({1201000}, at::kFloat),
                        {{"large", 0, {1200, 1000}}, {"small", 1200000, {100, 10}}}};
    auto* values = bucket.buffer.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < 1201000; ++i) {
      values[i] = static_cast<float>(i % 100) + static_cast<float>(2 * ctx.rank);
    }
    EXPECT_EQ(statistics.bytes(), 0u);
    statistics.add(bucket);
    EXPECT_EQ(statistics.bytes(), 2u * 1201000);
    statistics.finish_step();
    const std::uint64_t sent = statistics.exchange(*ctx.group, 1);
    const bool owns_large = statistics.owner(0) == ctx.rank;
    EXPECT_EQ(statistics.bytes(), owns_large ? 2u * 1200000 : 2u * 1000);
    EXPECT_EQ(sent, owns_large ? 2000u : 2400000u) << "what the other one owns";
    for (std::size_t layer = 0; layer < 2; ++layer) {
      if (statistics.owner(layer) != ctx.rank) continue;
      const auto mean = statistics.values(layer);
      for (std::size_t i = 0; i < mean.size(); ++i) {
        ASSERT_EQ(mean[i], static_cast<float>(i % 100) + 1.0f) << i;
      }
    }
    statistics.release();
    EXPECT_EQ(statistics.bytes(), 0u);
  });
}

// To the nearest, a sum in bfloat16 stays at 256 once it is there.
TEST(GradientStatistics, ManyEqualGradientsAddUp) {
  constexpr int kSteps = 1000;
  run_ranks(2, [&](RankContext& ctx) {
    GradientStatistics statistics(kLayers, ctx.rank, 2);
    comm::Bucket bucket = bucket_of(0, 0);
    bucket.buffer.fill_(1.0f);
    for (int step = 0; step < kSteps; ++step) {
      statistics.add(bucket);
      statistics.finish_step();
    }
    statistics.exchange(*ctx.group, 1);
    if (statistics.owner(1) != ctx.rank) return;
    const std::vector<float> values = statistics.values(1);
    EXPECT_THAT(values, ::testing::Each(::testing::FloatNear(1.0f, 0.25f)));
    EXPECT_NEAR(std::accumulate(values.begin(), values.end(), 0.0) / 3000, 1.0, 0.005);
  });
}

TEST(GradientStatistics, LeavesOutWhatIsNotFinite) {
  run_ranks(2, [&](RankContext& ctx) {
    GradientStatistics statistics(kLayers, ctx.rank, 2);
    comm::Bucket bucket = bucket_of(0, 0);
    bucket.buffer.fill_(1.0f);
    // Layer "b" is spoilt on rank 1, "a" is well on both.
    if (ctx.rank == 1) {
      for (const auto& layer : bucket.layers) {
        if (layer.name == "b") {
          bucket.buffer[layer.offset + 3] = std::numeric_limits<float>::infinity();
        }
      }
    }
    statistics.add(bucket);
    statistics.finish_step();
    EXPECT_EQ(statistics.left_out(), ctx.rank);
    statistics.exchange(*ctx.group, 1);
    for (std::size_t i = 0; i < 2; ++i) {
      if (statistics.owner(i) == ctx.rank) {
        EXPECT_EQ(statistics.values(i)[0], i == 0 ? 1.0f : 0.5f);
      }
    }
  });
}

}  // namespace
}  // namespace thinwire
