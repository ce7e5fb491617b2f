#include "thinwire/torch_ext/adaptive/layer_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

namespace thinwire {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// Settings: none, which takes 0.2 s a bucket, and one that takes 0.03 s.
LayerTask four_buckets() {
  LayerTask task{.uniform = 1, .seconds_per_byte = {0.002, 0.0003}};
  for (const double ready : {0.1, 0.2, 0.3, 0.4}) {
    task.layers.push_back({.bucket = task.buckets.size(), .bytes = 100, .squared_errors = {0, 1}});
    task.buckets.push_back({.ready = ready});
  }
  return task;
}

TEST(LayerChoice, WhatIsReadyEarlyGoesAsItIs) {
  const LayerTask task = four_buckets();
  EXPECT_DOUBLE_EQ(predicted_end(task, {1, 1, 1, 1}), 0.43);
  EXPECT_DOUBLE_EQ(predicted_end(task, {0, 0, 0, 0}), 0.9);
  EXPECT_THAT(choose_by_layer(task, 1), ElementsAre(0, 1, 1, 1));
}

// All four together have the time for one of them, but the last ones do not.
TEST(LayerChoice, WhatIsReadyLateHasNoTimeHoweverMuchItLoses) {
  LayerTask task = four_buckets();
  for (std::size_t most : {1u, 2u, 3u}) {
    for (auto& layer : task.layers) layer.squared_errors[1] = 1;
    task.layers[most].squared_errors[1] = 1000;
    EXPECT_THAT(choose_by_layer(task, 1), ElementsAre(0, 1, 1, 1)) << most;
  }
}

TEST(LayerChoice, OfOneBucketTheLayersThatLoseMost) {
  LayerTask task{.uniform = 1, .seconds_per_byte = {0.002, 0.0003}};
  task.buckets = {{.ready = 0.1}, {.ready = 0.6}};
  for (const double error : {1.0, 8.0, 2.0, 9.0}) {
    task.layers.push_back({.bucket = 0, .bytes = 100, .squared_errors = {0, error}});
  }
  EXPECT_THAT(choose_by_layer(task, 1), ElementsAre(1, 0, 1, 0));
  EXPECT_THAT(choose_by_layer(task, 0.55), ElementsAre(1, 1, 1, 0)) << "with half of the time";
  EXPECT_THAT(choose_by_layer(task, 0), Each(1));
}

TEST(LayerChoice, LayersOfWhichNothingIsKnownKeepTheSettingOfAll) {
  LayerTask task = four_buckets();
  task.layers[0].squared_errors = {0, 0};
  EXPECT_THAT(choose_by_layer(task, 1), Each(1));
  task.layers[0].squared_errors = {0, std::numeric_limits<double>::infinity()};
  EXPECT_THAT(choose_by_layer(task, 1), Each(1));
}

TEST(LayerChoice, SettingsThatWereNotTriedAreNotChosen) {
  LayerTask task = four_buckets();
  task.seconds_per_byte = {std::nullopt, 0.0006, 0.0003};
  task.uniform = 2;
  for (auto& layer : task.layers) layer.squared_errors = {0, 0.1, 1};
  EXPECT_THAT(choose_by_layer(task, 1), ElementsAre(1, 1, 1, 2));
}

LayerTask random_task(std::mt19937& random, std::size_t layers) {
  std::uniform_real_distribution<double> uniform(0, 1);
  LayerTask task{.uniform = 2,
                 .seconds_per_byte = {1 + uniform(random), 0.6, 0.1 + 0.2 * uniform(random)}};
  double ready = 0;
  for (std::size_t l = 0; l < layers; ++l) {
    if (l % 2 == 0) {
      task.buckets.push_back(
          {.ready = ready += uniform(random), .other_bytes = 0.1 * uniform(random)});
    }
    const double scale = std::exp(4 * uniform(random));
    task.layers.push_back({.bucket = task.buckets.size() - 1,
                           .bytes = uniform(random),
                           .squared_errors = {0, 0.01 * scale, scale}});
  }
  return task;
}

// Every choice there is, of those that end in time the one with the least error.
double least_error(const LayerTask& task, double end) {
  std::vector<std::size_t> settings(task.layers.size(), 0);
  double least = std::numeric_limits<double>::infinity();
  for (;;) {
    if (predicted_end(task, settings) <= end)
      least = std::min(least, squared_error(task, settings));
    std::size_t l = 0;
    while (l < settings.size() && settings[l] == task.uniform) settings[l++] = 0;
    if (l == settings.size()) return least;
    ++settings[l];
  }
}

TEST(LayerChoice, EndsInTimeWithAboutTheLeastErrorThatDoes) {
  std::mt19937 random(1);
  double chosen_sum = 0, least_sum = 0, uniform_sum = 0;
  for (int round = 0; round < 100; ++round) {
    const LayerTask task = random_task(random, 8);
    const std::vector<std::size_t> uniform(task.layers.size(), task.uniform);
    const double end = std::max(predicted_end(task, uniform), 1.02 * task.buckets.back().ready);
    const auto chosen = choose_by_layer(task, 1);
    EXPECT_LE(predicted_end(task, chosen), end * (1 + 1e-9));
    EXPECT_LE(predicted_end(task, choose_by_layer(task, 0.5)), end * (1 + 1e-9));
    chosen_sum += squared_error(task, chosen);
    least_sum += least_error(task, end * (1 + 1e-9));
    uniform_sum += squared_error(task, uniform);
  }
  EXPECT_GE(chosen_sum, least_sum * (1 - 1e-9));
  EXPECT_LE(chosen_sum, 1.1 * least_sum);
  EXPECT_LE(chosen_sum, 0.5 * uniform_sum);
}

}  // namespace
}  // namespace thinwire
