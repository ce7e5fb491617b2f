#include "thinwire/comm/average/reduce/class_layout.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "thinwire/compressors/spectral/level_order.h"

namespace thinwire::comm {
namespace {

using spectral::kLevels;
using spectral::LevelCounts;
using spectral::MatrixBasis;
using Run = ClassLayout::Run;

constexpr std::size_t kMostClasses = 24;
constexpr std::size_t kLevelsOfClass = spectral::kLevelsPerOctave / 2;
// A class costs a byte in every slice, and it takes some elements to know a table.
constexpr std::uint64_t kLeastInClass = 256;
// Fewer elements of a layer's class than so many an owner go to one of them.
constexpr std::int64_t kLeastRun = 32;

// By level, and how many there are.
struct Classes {
  std::array<std::uint8_t, kLevels> of_level{};
  std::size_t count = 1;
};

// From the largest elements downwards.
Classes make_classes(std::span<const LevelCounts> layers) {
  Classes classes;
  std::uint64_t elements = 0;  // of the class so far
  std::size_t top = kLevels;   // its highest level
  for (std::size_t level = kLevels; level-- > 0;) {
    std::uint64_t here = 0;
    for (const LevelCounts& counts : layers) here += counts[level];
    if (here > 0 && top - level > kLevelsOfClass && elements >= kLeastInClass &&
        classes.count < kMostClasses) {
      ++classes.count;
      elements = 0;
    }
    if (here > 0 && elements == 0) top = level + 1;
    elements += here;
    classes.of_level[level] = static_cast<std::uint8_t>(classes.count - 1);
  }
  return classes;
}

// What one owner has of one chunk.
struct Cell {
  std::vector<Run> runs;  // by class, then layer
  std::vector<std::int64_t> of_class;
  std::int64_t numel = 0;
};

class Dealer {
 public:
  Dealer(std::size_t cells, std::size_t classes) : cells_(cells) {
    for (Cell& cell : cells_) cell.of_class.resize(classes);
  }

  void deal(std::size_t layer, std::size_t of_class, std::int64_t begin, std::int64_t numel) {
    const auto count = static_cast<std::int64_t>(cells_.size());
    if (numel < count * kLeastRun) {
      const auto has = [&](const Cell& cell) {
        return std::tuple(cell.of_class[of_class], cell.numel);
      };
      return give(*std::ranges::min_element(cells_, {}, has), layer, of_class, begin, numel);
    }
    for (std::int64_t c = 0; c < count; ++c) {
      const std::int64_t from = numel * c / count, to = numel * (c + 1) / count;
      give(cells_[static_cast<std::size_t>(c)], layer, of_class, begin + from, to - from);
    }
  }

  std::vector<Cell>& cells() { return cells_; }

 private:
  static void give(Cell& cell, std::size_t layer, std::size_t of_class, std::int64_t begin,
                   std::int64_t numel) {
    if (numel == 0) return;
    cell.runs.push_back({.layer = layer, .begin = begin, .numel = numel});
    cell.of_class[of_class] += numel;
    cell.numel += numel;
  }

  std::vector<Cell> cells_;
};

// Of one layer, whose runs are in its level order.
std::vector<std::uint32_t> places_of(const MatrixBasis& basis, const LevelCounts& counts,
                                     std::span<const Run> runs) {
  struct Cursor {
    std::uint32_t next = 0, left = 0;
    std::uint32_t run = 0;
  };
  std::vector<Cursor> cursors(kLevels);
  std::int64_t rank = 0;
  std::uint32_t run = 0;
  for (std::size_t level = kLevels; level-- > 0;) {
    if (counts[level] == 0) continue;
    while (rank >= runs[run].begin + runs[run].numel) ++run;
    const std::int64_t inside = rank - runs[run].begin;
    cursors[level] = {static_cast<std::uint32_t>(runs[run].first + inside),
                      static_cast<std::uint32_t>(runs[run].numel - inside), run};
    rank += counts[level];
  }
  std::vector<std::uint32_t> places;
  places.reserve(static_cast<std::size_t>(rank));
  for (const std::uint16_t row : basis.row_levels()) {
    for (const std::uint16_t column : basis.column_levels()) {
      Cursor& cursor = cursors[row + column];
      if (cursor.left == 0) {
        const Run& next = runs[++cursor.run];
        cursor.next = static_cast<std::uint32_t>(next.first);
        cursor.left = static_cast<std::uint32_t>(next.numel);
      }
      places.push_back(cursor.next++);
      --cursor.left;
    }
  }
  return places;
}

}  // namespace

ClassLayout class_layout(std::span<const MatrixBasis* const> layers, int world, int chunks) {
  std::vector<LevelCounts> counts;
  for (const MatrixBasis* basis : layers) {
    counts.push_back(spectral::count_levels(basis->row_levels(), basis->column_levels()));
  }
  const Classes classes = make_classes(counts);
  std::vector<std::vector<std::int64_t>> of_class(layers.size(),
                                                  std::vector<std::int64_t>(classes.count));
  for (std::size_t l = 0; l < layers.size(); ++l) {
    for (std::size_t level = 0; level < kLevels; ++level) {
      of_class[l][classes.of_level[level]] += counts[l][level];
    }
  }
  Dealer dealer(static_cast<std::size_t>(world) * static_cast<std::size_t>(chunks), classes.count);
  std::vector<std::int64_t> dealt(layers.size());
  for (std::size_t c = 0; c < classes.count; ++c) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      dealer.deal(l, c, dealt[l], of_class[l][c]);
      dealt[l] += of_class[l][c];
    }
  }

  ClassLayout layout;
  layout.slices.resize(static_cast<std::size_t>(chunks));
  std::vector<std::vector<Run>> runs_of_layer(layers.size());
  std::int64_t first = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    for (int owner = 0; owner < world; ++owner) {
      Cell& cell = dealer.cells()[static_cast<std::size_t>(chunk * world + owner)];
      Slice& slice = layout.slices[static_cast<std::size_t>(chunk)].emplace_back();
      slice.numel = cell.numel;
      std::int64_t begin = first;
      for (const std::int64_t numel : cell.of_class) {
        if (numel > 0) slice.pieces.push_back({.begin = begin, .numel = numel});
        begin += numel;
      }
      for (Run& run : cell.runs) {
        run.first = first;
        run.chunk = chunk;
        run.owner = owner;
        first += run.numel;
        runs_of_layer[run.layer].push_back(run);
        layout.runs.push_back(run);
      }
    }
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    std::ranges::sort(runs_of_layer[l], {}, &Run::begin);
    layout.places.push_back(places_of(*layers[l], counts[l], runs_of_layer[l]));
  }
  return layout;
}

}  // namespace thinwire::comm
