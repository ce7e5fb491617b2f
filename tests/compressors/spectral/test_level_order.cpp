#include "thinwire/compressors/spectral/level_order.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace thinwire::spectral {
namespace {

TEST(LevelOrder, LevelsAreEighthsOfAnOctave) {
  EXPECT_EQ(level_of(0), 0);
  EXPECT_EQ(level_of(1), 1016);
  EXPECT_EQ(level_of(2) - level_of(1), kLevelsPerOctave);
  EXPECT_EQ(level_of(1.125f) - level_of(1), 1);
  EXPECT_LT(level_of(3.4e38f) + level_of(3.4e38f), kLevels);
}

TEST(LevelOrder, PlacesFallWithTheLevelAndCountEachElementOnce) {
  std::mt19937 generator(3);
  std::vector<std::uint16_t> rows(23), columns(57);
  for (auto& level : rows) level = static_cast<std::uint16_t>(1000 + generator() % 40);
  for (auto& level : columns) level = static_cast<std::uint16_t>(900 + generator() % 9);
  const LevelCounts counts = count_levels(rows, columns);
  std::vector<std::uint32_t> places(rows.size() * columns.size());
  order_by_level(rows, columns, places);
  std::vector<std::size_t> element_at(places.size(), places.size());
  for (std::size_t e = 0; e < places.size(); ++e) {
    ASSERT_LT(places[e], places.size());
    ASSERT_EQ(element_at[places[e]], places.size()) << "a place is taken twice";
    element_at[places[e]] = e;
  }
  const auto level = [&](std::size_t e) {
    return std::size_t{rows[e / columns.size()]} + columns[e % columns.size()];
  };
  std::vector<std::uint32_t> seen(kLevels);
  for (std::size_t p = 0; p < places.size(); ++p) {
    ++seen[level(element_at[p])];
    if (p == 0) continue;
    const std::size_t before = level(element_at[p - 1]), here = level(element_at[p]);
    EXPECT_GE(before, here);
    if (before == here) {
      EXPECT_LT(element_at[p - 1], element_at[p]);
    }
  }
  EXPECT_TRUE(std::ranges::equal(seen, counts));
}

}  // namespace
}  // namespace thinwire::spectral
