#include "thinwire/compressors/entropy/symbol_table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "thinwire/common/error.h"

namespace thinwire::entropy {
namespace {

// Logarithms of counts are most of what it takes to find out which parts share a table.
constexpr std::size_t kLogarithms = 4096;
const std::array<std::uint32_t, kLogarithms> kFixedLog2 = [] {
  std::array<std::uint32_t, kLogarithms> logarithms{};
  for (std::size_t n = 1; n < logarithms.size(); ++n) {
    logarithms[n] = static_cast<std::uint32_t>(fixed_log2(n));
  }
  return logarithms;
}();

}  // namespace

FixedBits n_log2_n(std::uint64_t count) {
  const FixedBits logarithm = count < kLogarithms ? kFixedLog2[count] : fixed_log2(count);
  return static_cast<FixedBits>(count) * logarithm;
}

SymbolWeights weights_of(std::span<const std::uint32_t, kMaxSymbols> counts) {
  const std::uint64_t total = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  SymbolWeights weights{};
  for (std::size_t s = 0; s < counts.size(); ++s) {
    weights[s] = weight_of(counts[s], total);
  }
  return weights;
}

SymbolTable::SymbolTable(std::span<const std::uint8_t> weights) {
  THINWIRE_ASSERT(weights.size() <= kMaxSymbols);
  std::uint64_t total = 0;
  for (const std::uint8_t weight : weights) total += value_of(weight);
  THINWIRE_ASSERT(total > 0);
  std::array<std::uint32_t, kMaxSymbols> frequencies{};
  std::uint32_t sum = 0;
  std::size_t largest = 0;
  for (std::size_t s = 0; s < weights.size(); ++s) {
    if (weights[s] == 0) continue;
    frequencies[s] = frequency_of(weights[s], total);
    sum += frequencies[s];
    if (weights[s] > weights[largest]) largest = s;
    last_ = static_cast<int>(s);
  }
  // Each of the others was rounded up by less than 1, and the largest is at least a 32nd.
  frequencies[largest] += kTableTotal - sum;

  start.fill(kTableTotal);
  std::uint32_t next = 0;
  for (std::size_t s = 0; s < frequencies.size(); ++s) {
    const std::uint32_t frequency = frequencies[s];
    start[s] = next;
    const auto shift = static_cast<unsigned>(frequency > 1 ? std::bit_width(frequency - 1) : 0);
    packed[s] = shift << 28 | (frequency & (kTableTotal - 1)) << 14 | (next & (kTableTotal - 1));
    reciprocal[s] = frequency == 0
                        ? 0
                        : static_cast<std::uint32_t>(
                              ((std::uint64_t{1} << (31 + shift)) + frequency - 1) / frequency);
    next += frequency;
  }
}

double SymbolTable::bits(std::span<const std::uint32_t, kMaxSymbols> counts) const {
  double sum = 0;
  for (int s = 0; s < kMaxSymbols; ++s) {
    const std::uint32_t count = counts[static_cast<std::size_t>(s)];
    if (count == 0) continue;
    if (frequency(s) == 0) return std::numeric_limits<double>::infinity();
    sum += count * (kTableBits - std::log2(frequency(s)));
  }
  return sum;
}

}  // namespace thinwire::entropy
