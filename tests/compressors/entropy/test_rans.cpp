#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire::entropy {
namespace {

using Counts = std::array<std::uint32_t, kMaxSymbols>;
using Symbols = std::vector<std::uint8_t>;

Counts counts_of(const Symbols& symbols) {
  Counts counts{};
  for (const std::uint8_t symbol : symbols) ++counts[symbol];
  return counts;
}

double entropy_of(const Counts& counts) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double bits = 0;
  for (const double count : counts) {
    if (count > 0) bits -= count * std::log2(count / total);
  }
  return bits;
}

SymbolTable table_of(const Counts& counts) {
  return SymbolTable(std::span<const std::uint8_t>(weights_of(counts)));
}

// Two-sided geometric symbols, `spread` the mean of their size; at most 31.
Symbols symbols_of(std::size_t count, double spread, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::exponential_distribution<double> size(1 / spread);
  Symbols symbols(count);
  for (auto& symbol : symbols) {
    symbol = static_cast<std::uint8_t>(std::min(31.0, 2 * size(generator) + 0.3));
  }
  return symbols;
}

struct Part {
  SymbolTable table;
  Symbols symbols;
};

std::vector<Part> parts_of(std::initializer_list<std::size_t> sizes, double spread) {
  std::vector<Part> parts;
  for (const std::size_t size : sizes) {
    const Symbols symbols =
        symbols_of(size, spread * static_cast<double>(1 + parts.size()), 7 + parts.size());
    Counts counts = counts_of(symbols);
    counts[0] += 1;  // so that there is a table of no symbols as well
    parts.push_back({table_of(counts), symbols});
  }
  return parts;
}

std::vector<std::byte> encoded(const std::vector<Part>& parts, int lanes, std::size_t room) {
  std::vector<std::byte> out(room);
  RansEncoder encoder(out, lanes);
  for (std::size_t p = parts.size(); p-- > 0;) {
    if (!encoder.encode(parts[p].table, parts[p].symbols)) return {};
  }
  out.resize(encoder.finish());
  return out;
}

bool decodes_to(const std::vector<std::byte>& stream, int lanes, const std::vector<Part>& parts) {
  RansDecoder decoder(stream, lanes);
  for (const Part& part : parts) {
    Symbols symbols(part.symbols.size(), 99);
    if (!decoder.decode(part.table, symbols) || symbols != part.symbols) return false;
  }
  return decoder.finished();
}

TEST(SymbolTable, FrequenciesAddUpAndFollowTheCounts) {
  for (const double spread : {0.02, 0.3, 2.0, 10.0}) {
    const Counts counts = counts_of(symbols_of(30000, spread, 3));
    const SymbolTable table = table_of(counts);
    std::uint32_t sum = 0;
    for (int s = 0; s < kMaxSymbols; ++s) {
      sum += table.frequency(s);
      EXPECT_EQ(table.frequency(s) > 0, counts[static_cast<std::size_t>(s)] > 0) << s;
    }
    EXPECT_EQ(sum, kTableTotal);
    EXPECT_LT(table.bits(counts), entropy_of(counts) * 1.002 + 1);
  }
}

TEST(SymbolTable, ReciprocalsDivideExactly) {
  for (std::uint32_t frequency = 1; frequency < kTableTotal; ++frequency) {
    const auto shift = static_cast<unsigned>(frequency > 1 ? std::bit_width(frequency - 1) : 0);
    const std::uint64_t reciprocal =
        ((std::uint64_t{1} << (31 + shift)) + frequency - 1) / frequency;
    ASSERT_LE(reciprocal, 0xFFFFFFFFu);
    for (const std::uint32_t x :
         {frequency - 1, frequency, 0x7FFFFFFFu, 0x7FFFFFFFu / frequency * frequency - 1,
          0x7FFFFFFFu / frequency * frequency}) {
      ASSERT_EQ(std::uint64_t{2 * x} * reciprocal >> 32 >> shift, x / frequency) << frequency;
    }
  }
}

class RansTargets : public ::testing::TestWithParam<std::string> {};

// Against the target without vectors, which is the reference itself.
TEST_P(RansTargets, WriteTheBytesOfTheReferenceAndReadThem) {
  for (const int lanes : {2, 8, 32, 64, 128}) {
    for (const double spread : {0.05, 0.7, 4.0}) {
      const auto parts = parts_of({1000, 0, 1, 31, 128, 4097, 129, 20000}, spread);
      std::vector<std::byte> expected, found;
      {
        const testing::ScopedTarget target(kernels::simd_targets().back());
        expected = encoded(parts, lanes, 60000);
      }
      const testing::ScopedTarget target(GetParam());
      found = encoded(parts, lanes, 60000);
      ASSERT_FALSE(expected.empty());
      ASSERT_EQ(found, expected) << lanes << " lanes, spread " << spread;
      ASSERT_TRUE(decodes_to(found, lanes, parts)) << lanes << " lanes, spread " << spread;
      // As little room as there may be.
      ASSERT_EQ(encoded(parts, lanes, found.size()), expected);
      ASSERT_TRUE(encoded(parts, lanes, found.size() - 1).empty());
    }
  }
}

TEST_P(RansTargets, NeverLeaveTheirMemoryWhateverTheBytes) {
  const testing::ScopedTarget target(GetParam());
  std::mt19937 random(5);
  for (const int lanes : {2, 32, 128}) {
    const auto parts = parts_of({3000, 700}, 1.0);
    const std::vector<std::byte> stream = encoded(parts, lanes, 20000);
    for (int i = 0; i < 400; ++i) {
      // A vector of exactly that size, for the address sanitizer.
      std::vector<std::byte> damaged(stream);
      damaged[random() % damaged.size()] ^= static_cast<std::byte>(1 + random() % 255);
      if (i % 4 == 0) damaged.resize(random() % damaged.size());
      EXPECT_FALSE(decodes_to(damaged, lanes, parts));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Simd, RansTargets, ::testing::ValuesIn(kernels::simd_targets()));

TEST(Rans, ReachesTheEntropyBound) {
  for (const double spread : {0.4, 1.0, 4.0}) {
    const Symbols symbols = symbols_of(1 << 19, spread, 11);
    const Counts counts = counts_of(symbols);
    const std::vector<Part> parts = {{table_of(counts), symbols}};
    const auto bytes =
        static_cast<double>(encoded(parts, lanes_for(symbols.size()), 1 << 19).size());
    EXPECT_LT(8 * bytes, 1.01 * entropy_of(counts)) << entropy_of(counts) / (1 << 19);
    EXPECT_GT(8 * bytes, entropy_of(counts));
  }
}

}  // namespace
}  // namespace thinwire::entropy
