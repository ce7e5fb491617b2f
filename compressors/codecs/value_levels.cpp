#include "thinwire/compressors/codecs/value_levels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans.h"

namespace thinwire {
namespace {

constexpr std::size_t kMaxLevels = entropy::kMaxSymbols;
constexpr int kMagnitudes = 15;  // two signs of each, zero and NaN are 32 levels
// Of the mean above the threshold; an exponential then takes a bit and loses 0.17 of its variance.
constexpr double kSpacing = 1.5;

// Symbols of the calling thread; their memory serves one payload after another.
std::vector<std::uint8_t>& level_symbols() {
  thread_local std::vector<std::uint8_t> instance;
  return instance;
}

// Different values, ascending by their bits.
struct LevelSet {
  std::array<std::uint32_t, kMaxLevels> bits{};
  std::size_t count = 0;

  // Position of the value, where it is, or would be.
  std::size_t find(std::uint32_t value) const {
    return static_cast<std::size_t>(std::lower_bound(bits.begin(), bits.begin() + count, value) -
                                    bits.begin());
  }
  // False where there is no room for one more.
  bool insert(std::uint32_t value) {
    const std::size_t at = find(value);
    if (at < count && bits[at] == value) return true;
    if (count == kMaxLevels) return false;
    std::copy_backward(bits.begin() + at, bits.begin() + count, bits.begin() + count + 1);
    bits[at] = value;
    ++count;
    return true;
  }
};

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

std::size_t max_levels_bytes(std::size_t count) {
  // A word a symbol is more than any stream takes, and a vector may be stored past its end.
  return 1 + kMaxLevels * (sizeof(float) + 1) + 2 * count +
         4 * static_cast<std::size_t>(entropy::lanes_for(count)) + 64;
}

std::size_t encode_levels(std::span<const float> values, std::span<std::byte> out) {
  if (values.empty()) return 0;
  LevelSet levels;
  for (const float value : values) {
    if (!levels.insert(std::bit_cast<std::uint32_t>(value))) return 0;
  }
  out[0] = static_cast<std::byte>(levels.count);
  std::size_t at = 1;
  std::memcpy(out.data() + at, levels.bits.data(), levels.count * sizeof(float));
  at += levels.count * sizeof(float);
  if (levels.count == 1) return at;
  std::vector<std::uint8_t>& symbols = level_symbols();
  symbols.resize(values.size());
  std::array<std::uint32_t, entropy::kMaxSymbols> counts{};
  for (std::size_t i = 0; i < values.size(); ++i) {
    symbols[i] = static_cast<std::uint8_t>(levels.find(std::bit_cast<std::uint32_t>(values[i])));
    ++counts[symbols[i]];
  }
  const entropy::SymbolWeights weights = entropy::weights_of(counts);
  std::memcpy(out.data() + at, weights.data(), levels.count);
  at += levels.count;
  entropy::RansEncoder stream(out.subspan(at), entropy::lanes_for(symbols.size()));
  const bool fits =
      stream.encode(entropy::SymbolTable(std::span(weights).first(levels.count)), symbols);
  const std::size_t bytes = fits ? stream.finish() : 0;
  THINWIRE_ASSERT(bytes > 0);
  return at + bytes;
}

void decode_levels(std::span<const std::byte> in, std::span<float> values) {
  const auto refuse = [](std::string_view what) {
    throw FrameError(concat("levels of values: ", what));
  };
  if (in.empty()) refuse("the payload is empty");
  const auto count = static_cast<std::size_t>(in[0]);
  if (count == 0 || count > kMaxLevels) refuse(concat("there are ", count, ", expected 1 to 32"));
  const std::size_t table = count > 1 ? count : 0;
  const std::size_t head = 1 + count * sizeof(float) + table;
  if (in.size() < head) refuse("the payload ends too early");
  std::array<std::uint32_t, kMaxLevels> levels{};
  std::memcpy(levels.data(), in.data() + 1, count * sizeof(float));
  for (std::size_t i = 1; i < count; ++i) {
    if (levels[i - 1] >= levels[i]) refuse("they do not ascend");
  }
  if (count == 1) {
    if (in.size() != head) refuse("bytes are left over");
    std::ranges::fill(values, std::bit_cast<float>(levels[0]));
    return;
  }
  entropy::SymbolWeights weights{};
  std::memcpy(weights.data(), in.data() + head - table, table);
  const auto used = std::span(weights).first(count);
  if (std::ranges::find(used, std::uint8_t{0}) != used.end()) {
    refuse("a level has no weight");
  }
  std::vector<std::uint8_t>& symbols = level_symbols();
  symbols.resize(values.size());
  entropy::RansDecoder stream(in.subspan(head), entropy::lanes_for(symbols.size()));
  if (!stream.decode(entropy::SymbolTable(std::span(weights).first(count)), symbols) ||
      !stream.finished()) {
    refuse("the stream is damaged");
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(levels[symbols[i]]);
  }
}

}  // namespace thinwire
