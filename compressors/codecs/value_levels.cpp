#include "thinwire/compressors/codecs/value_levels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans.h"

namespace thinwire {
namespace {

constexpr std::size_t kMaxLevels = entropy::kMaxSymbols / 2;
constexpr std::size_t kMaxParts = 0xFFFF;
constexpr int kMagnitudes = 14;  // with zero and NaN as many as there are levels
constexpr std::uint32_t kSign = 0x80000000;
// Of the mean above the threshold; an exponential then takes a bit and loses 0.17 of its variance.
constexpr double kSpacing = 1.5;

std::uint32_t magnitude_bits(float value) {
  return std::bit_cast<std::uint32_t>(value) & ~kSign;
}

// Symbols of the calling thread; their memory serves one payload after another.
std::vector<std::uint8_t>& level_symbols() {
  thread_local std::vector<std::uint8_t> instance;
  return instance;
}

// Different magnitudes, ascending by their bits.
struct LevelSet {
  std::array<std::uint32_t, kMaxLevels> bits{};
  std::size_t count = 0;

  std::size_t bytes() const { return count * sizeof bits[0]; }
  // Position of the magnitude, where it is, or would be.
  std::size_t find(std::uint32_t magnitude) const {
    return static_cast<std::size_t>(
        std::lower_bound(bits.begin(), bits.begin() + count, magnitude) - bits.begin());
  }
  // False where there is no room for one more.
  bool insert(std::uint32_t magnitude) {
    const std::size_t at = find(magnitude);
    if (at < count && bits[at] == magnitude) return true;
    if (count == kMaxLevels) return false;
    std::copy_backward(bits.begin() + at, bits.begin() + count, bits.begin() + count + 1);
    bits[at] = magnitude;
    ++count;
    return true;
  }
};

// Those of each part, in memory of the calling thread; null where a part has more than there are.
const std::vector<LevelSet>* find_levels(std::span<const float> values,
                                         std::span<const std::uint32_t> ends) {
  thread_local std::vector<LevelSet> levels;
  levels.assign(ends.size(), {});
  std::uint32_t i = 0;
  for (std::size_t part = 0; part < ends.size(); ++part) {
    for (; i < ends[part]; ++i) {
      if (!levels[part].insert(magnitude_bits(values[i]))) return nullptr;
    }
  }
  return &levels;
}

// What a payload has left; refuses where that is too little.
class LevelsReader {
 public:
  explicit LevelsReader(std::span<const std::byte> in) : in_(in) {}

  template <class T>
  T take() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> take(std::size_t bytes) {
    if (in_.size() < bytes) refuse("the payload ends too early");
    const auto taken = in_.first(bytes);
    in_ = in_.subspan(bytes);
    return taken;
  }
  std::span<const std::byte> rest() const { return in_; }

  [[noreturn]] static void refuse(std::string_view what) {
    throw FrameError(concat("levels of values: ", what));
  }

 private:
  std::span<const std::byte> in_;
};

LevelSet read_levels(LevelsReader& in) {
  LevelSet levels;
  levels.count = in.take<std::uint8_t>();
  if (levels.count == 0 || levels.count > kMaxLevels) {
    LevelsReader::refuse(concat("there are ", levels.count, ", expected 1 to ", kMaxLevels));
  }
  std::memcpy(levels.bits.data(), in.take(levels.bytes()).data(), levels.bytes());
  for (std::size_t i = 0; i < levels.count; ++i) {
    if ((levels.bits[i] & kSign) != 0) LevelsReader::refuse("one has a sign");
    if (i > 0 && levels.bits[i - 1] >= levels.bits[i]) LevelsReader::refuse("they do not ascend");
  }
  return levels;
}

// Levels and values of the parts of a payload that is read.
struct LevelParts {
  std::vector<LevelSet> levels;
  std::vector<std::size_t> ends;
};

// Their memory serves one payload of the calling thread after another.
LevelParts& read_parts(LevelsReader& in, std::size_t values) {
  thread_local LevelParts parts;
  parts.levels.clear();
  parts.ends.clear();
  const std::size_t count = in.take<std::uint16_t>();
  if (count == 0) LevelsReader::refuse("there is no part");
  for (std::size_t i = 0, end = 0; i < count; ++i) {
    parts.levels.push_back(read_levels(in));
    const std::size_t left = values - end;
    const std::size_t own = i + 1 < count ? in.take<std::uint32_t>() : left;
    if (own == 0 || own > left) LevelsReader::refuse("parts have other values than all");
    parts.ends.push_back(end += own);
  }
  return parts;
}

}  // namespace

void round_to_levels(std::span<float> values) {
  double least = std::numeric_limits<double>::infinity(), sum = 0;
  std::size_t counted = 0;
  for (float& value : values) {
    if (!std::isfinite(value)) {
      value = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    if (value == 0) {
      value = 0;  // of either sign before
      continue;
    }
    const double magnitude = std::fabs(double{value});
    least = std::min(least, magnitude);
    sum += magnitude;
    ++counted;
  }
  if (counted == 0) return;
  const double spacing = kSpacing * (sum / static_cast<double>(counted) - least);
  const auto level_of = [&](float value) {
    if (!(spacing > 0)) return 0;
    const double above = std::fabs(double{value}) - least;
    return static_cast<int>(std::min(above / spacing, double{kMagnitudes - 1}));
  };
  std::array<double, kMagnitudes> sums{};
  std::array<std::size_t, kMagnitudes> counts{};
  for (const float value : values) {
    if (std::isnan(value) || value == 0) continue;
    const auto level = static_cast<std::size_t>(level_of(value));
    sums[level] += std::fabs(double{value});
    ++counts[level];
  }
  for (float& value : values) {
    if (std::isnan(value) || value == 0) continue;
    const auto level = static_cast<std::size_t>(level_of(value));
    const auto mean = static_cast<float>(sums[level] / static_cast<double>(counts[level]));
    value = std::copysign(mean, value);
  }
}

std::size_t max_levels_bytes(std::size_t count, std::size_t parts) {
  // A word a symbol is more than any stream takes, and a vector may be stored past its end.
  return sizeof(std::uint16_t) + parts * (1 + kMaxLevels * sizeof(float) + sizeof(std::uint32_t)) +
         entropy::kMaxSymbols + 2 * count +
         4 * static_cast<std::size_t>(entropy::lanes_for(count)) + 64;
}

std::size_t encode_levels(std::span<const float> values, std::span<const std::uint32_t> ends,
                          std::span<std::byte> out) {
  if (values.empty() || ends.size() > kMaxParts) return 0;
  const auto whole = static_cast<std::uint32_t>(values.size());
  if (ends.empty()) ends = std::span(&whole, 1);
  THINWIRE_ASSERT(ends.back() == values.size());
  std::size_t at = 0, most_levels = 0;
  const auto write = [&](const void* data, std::size_t bytes) {
    std::memcpy(out.data() + at, data, bytes);
    at += bytes;
  };
  const auto parts = static_cast<std::uint16_t>(ends.size());
  write(&parts, sizeof parts);
  const std::vector<LevelSet>* const levels_of_parts = find_levels(values, ends);
  if (levels_of_parts == nullptr) return 0;
  std::vector<std::uint8_t>& symbols = level_symbols();
  symbols.resize(values.size());
  std::array<std::uint32_t, entropy::kMaxSymbols> counts{};
  std::uint32_t first = 0;  // of the part
  for (std::size_t part = 0; part < ends.size(); ++part) {
    const LevelSet& levels = (*levels_of_parts)[part];
    const std::uint32_t end = ends[part];
    for (std::uint32_t i = first; i < end; ++i) {
      const std::size_t symbol =
          2 * levels.find(magnitude_bits(values[i])) + (std::signbit(values[i]) ? 1 : 0);
      symbols[i] = static_cast<std::uint8_t>(symbol);
      ++counts[symbol];
    }
    most_levels = std::max(most_levels, levels.count);
    out[at++] = static_cast<std::byte>(levels.count);
    write(levels.bits.data(), levels.bytes());
    const std::uint32_t own = end - first;
    if (end != whole) write(&own, sizeof own);
    first = end;
  }
  const entropy::SymbolWeights weights = entropy::weights_of(counts);
  write(weights.data(), 2 * most_levels);
  const auto used = std::span(weights).first(2 * most_levels);
  const entropy::SymbolTable table(used);
  if (table.constant()) return at;
  entropy::RansEncoder stream(out.subspan(at), entropy::lanes_for(symbols.size()));
  const bool fits = stream.encode(table, symbols);
  const std::size_t bytes = fits ? stream.finish() : 0;
  THINWIRE_ASSERT(bytes > 0);
  return at + bytes;
}

void decode_levels(std::span<const std::byte> in, std::span<float> values) {
  LevelsReader read(in);
  const LevelParts& parts = read_parts(read, values.size());
  std::size_t most_levels = 0;
  for (const LevelSet& levels : parts.levels) most_levels = std::max(most_levels, levels.count);
  entropy::SymbolWeights weights{};
  std::memcpy(weights.data(), read.take(2 * most_levels).data(), 2 * most_levels);
  const auto used = std::span(weights).first(2 * most_levels);
  if (std::ranges::all_of(used, [](std::uint8_t weight) { return weight == 0; })) {
    LevelsReader::refuse("no symbol has a weight");
  }
  const entropy::SymbolTable table(used);
  std::vector<std::uint8_t>& symbols = level_symbols();
  symbols.resize(values.size());
  if (table.constant()) {
    if (!read.rest().empty()) LevelsReader::refuse("bytes are left over");
    std::ranges::fill(symbols, static_cast<std::uint8_t>(table.last()));
  } else {
    entropy::RansDecoder stream(read.rest(), entropy::lanes_for(symbols.size()));
    if (!stream.decode(table, symbols) || !stream.finished()) {
      LevelsReader::refuse("the stream is damaged");
    }
  }
  std::size_t i = 0;
  for (std::size_t part = 0; part < parts.ends.size(); ++part) {
    const LevelSet& levels = parts.levels[part];
    for (; i < parts.ends[part]; ++i) {
      const std::size_t level = symbols[i] / 2;
      if (level >= levels.count) LevelsReader::refuse("a value has a level that its part has not");
      values[i] = std::bit_cast<float>(levels.bits[level] | (symbols[i] % 2 != 0 ? kSign : 0));
    }
  }
}

}  // namespace thinwire
