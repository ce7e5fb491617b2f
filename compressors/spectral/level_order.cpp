#include "thinwire/compressors/spectral/level_order.h"

#include <vector>

#include "thinwire/common/error.h"

namespace thinwire::spectral {
namespace {

struct LevelCount {
  std::uint16_t level;
  std::uint32_t count;
};

// Of the levels that occur.
std::vector<LevelCount> counted(std::span<const std::uint16_t> levels) {
  LevelCounts counts{};
  for (const std::uint16_t level : levels) ++counts[level];
  std::vector<LevelCount> found;
  for (std::size_t level = 0; level < kLevels; ++level) {
    if (counts[level] > 0) found.push_back({static_cast<std::uint16_t>(level), counts[level]});
  }
  return found;
}

}  // namespace

LevelCounts count_levels(std::span<const std::uint16_t> rows,
                         std::span<const std::uint16_t> columns) {
  LevelCounts counts{};
  const std::vector<LevelCount> of_columns = counted(columns);
  for (const LevelCount& row : counted(rows)) {
    for (const LevelCount& column : of_columns) {
      counts[row.level + column.level] += row.count * column.count;
    }
  }
  return counts;
}

void order_by_level(std::span<const std::uint16_t> rows, std::span<const std::uint16_t> columns,
                    std::span<std::uint32_t> places) {
  THINWIRE_ASSERT(places.size() == rows.size() * columns.size());
  LevelCounts next = count_levels(rows, columns);
  std::uint32_t first = 0;
  for (std::size_t level = kLevels; level-- > 0;) {
    const std::uint32_t count = next[level];
    next[level] = first;
    first += count;
  }
  std::size_t element = 0;
  for (const std::uint16_t row : rows) {
    for (const std::uint16_t column : columns) places[element++] = next[row + column]++;
  }
}

}  // namespace thinwire::spectral
