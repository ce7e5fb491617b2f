#include "thinwire/comm/average/reduce/class_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "thinwire/compressors/spectral/level_order.h"

namespace thinwire::comm {
namespace {

using spectral::MatrixBasis;

// Matrices whose predicted sizes fall along rows and columns, and a vector.
std::vector<MatrixBasis> uneven_layers() {
  std::vector<MatrixBasis> layers;
  std::mt19937 generator(5);
  std::normal_distribution<float> normal;
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{40, 300}, {128, 64}, {1, 700}, {3, 5}}) {
    MatrixBasis& basis = layers.emplace_back(spectral::MatrixShape{rows, cols}, 4, RandomKey{});
    std::vector<float> mean(static_cast<std::size_t>(rows * cols));
    for (std::int64_t e = 0; e < rows * cols; ++e) {
      const auto fall = static_cast<float>(e / cols + e % cols / 4);
      mean[static_cast<std::size_t>(e)] = std::exp2(-fall / 12) * normal(generator);
    }
    basis.learn(mean);
    basis.refresh({});
  }
  return layers;
}

TEST(ClassLayout, PutsEachElementInOnePlaceOfItsClass) {
  const std::vector<MatrixBasis> layers = uneven_layers();
  std::vector<const MatrixBasis*> pointers;
  std::size_t numel = 0;
  for (const MatrixBasis& basis : layers) {
    pointers.push_back(&basis);
    numel += static_cast<std::size_t>(basis.shape().rows * basis.shape().cols);
  }
  for (const int world : {1, 2, 5}) {
    for (const int chunks : {1, 3}) {
      const ClassLayout layout = class_layout(pointers, world, chunks);
      std::vector<int> taken(numel);
      ASSERT_EQ(layout.places.size(), layers.size());
      for (const auto& places : layout.places) {
        for (const std::uint32_t place : places) ++taken.at(place);
      }
      EXPECT_TRUE(std::ranges::all_of(taken, [](int times) { return times == 1; }));

      // Runs follow both orders.
      std::int64_t first = 0;
      for (const ClassLayout::Run& run : layout.runs) {
        EXPECT_EQ(run.first, first);
        first += run.numel;
        const MatrixBasis& basis = layers[run.layer];
        std::vector<std::uint32_t> order(layout.places[run.layer].size());
        spectral::order_by_level(basis.row_levels(), basis.column_levels(), order);
        for (std::size_t e = 0; e < order.size(); ++e) {
          const std::int64_t inside = std::int64_t{order[e]} - run.begin;
          if (inside < 0 || inside >= run.numel) continue;
          ASSERT_EQ(std::int64_t{layout.places[run.layer][e]}, run.first + inside);
        }
      }
      EXPECT_EQ(static_cast<std::size_t>(first), numel);

      // Slices are those of the runs, and their pieces fill them.
      ASSERT_EQ(layout.slices.size(), static_cast<std::size_t>(chunks));
      std::int64_t begin = 0, most = 0, least = 1 << 30;
      for (const auto& owners : layout.slices) {
        ASSERT_EQ(owners.size(), static_cast<std::size_t>(world));
        for (const Slice& slice : owners) {
          const std::int64_t end = begin + slice.numel;
          for (const Piece& piece : slice.pieces) {
            EXPECT_EQ(piece.begin, begin);
            begin += piece.numel;
          }
          EXPECT_EQ(begin, end);
          most = std::max(most, slice.numel);
          least = std::min(least, slice.numel);
        }
      }
      EXPECT_LE(most - least, 600);
    }
  }
}

// Every owner has elements of all classes, in like numbers; a class holds like sizes.
TEST(ClassLayout, ClassesAreShared) {
  const std::vector<MatrixBasis> layers = uneven_layers();
  std::vector<const MatrixBasis*> pointers;
  for (const MatrixBasis& basis : layers) pointers.push_back(&basis);
  const ClassLayout layout = class_layout(pointers, 4, 1);
  const auto& owners = layout.slices[0];
  EXPECT_GE(owners[0].pieces.size(), 8u);
  EXPECT_LE(owners[0].pieces.size(), 24u);
  for (const Slice& slice : owners) {
    ASSERT_EQ(slice.pieces.size(), owners[0].pieces.size());
    for (std::size_t p = 0; p < slice.pieces.size(); ++p) {
      EXPECT_NEAR(static_cast<double>(slice.pieces[p].numel),
                  static_cast<double>(owners[0].pieces[p].numel), 140);
    }
  }
  // Levels by place: those of one piece are above those of the next.
  std::map<std::uint32_t, std::size_t> level_at;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto rows = layers[l].row_levels(), columns = layers[l].column_levels();
    std::size_t e = 0;
    for (const std::uint16_t row : rows) {
      for (const std::uint16_t column : columns) {
        level_at[layout.places[l][e++]] = std::size_t{row} + column;
      }
    }
  }
  std::size_t lowest_before = spectral::kLevels;
  for (const Piece& piece : owners[0].pieces) {
    std::size_t lowest = spectral::kLevels, highest = 0;
    for (std::int64_t i = piece.begin; i < piece.begin + piece.numel; ++i) {
      const std::size_t level = level_at.at(static_cast<std::uint32_t>(i));
      lowest = std::min(lowest, level);
      highest = std::max(highest, level);
    }
    EXPECT_LT(highest, lowest_before);
    lowest_before = lowest;
  }
}

}  // namespace
}  // namespace thinwire::comm
