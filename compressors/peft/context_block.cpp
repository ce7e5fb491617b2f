#include "thinwire/compressors/peft/context_block.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace thinwire::peft::detail {
namespace {

// Columns of longer rows share an estimate with their neighbours.
constexpr std::int64_t kMaxColumns = std::int64_t{1} << 14;
// Probabilities are in 2^-16; below the least one a row that wakes up late would cost too much.
constexpr std::uint32_t kLeast = 48, kMost = 63488, kLeastLevel = 64;

constexpr int shift_of(std::int64_t columns) {
  int shift = 0;
  while ((columns - 1) >> shift >= kMaxColumns) ++shift;
  return shift;
}

constexpr std::size_t kReciprocals = 513;
constexpr std::array<std::int32_t, kReciprocals> kReciprocal = [] {
  std::array<std::int32_t, kReciprocals> table{};
  for (std::int32_t d = 1; d < static_cast<std::int32_t>(kReciprocals); ++d)
    table[static_cast<std::size_t>(d)] = 65536 / d;
  return table;
}();

std::uint16_t moved(std::uint16_t probability, bool set, std::uint32_t weight) {
  const std::int32_t off = (set ? 65535 : 0) - std::int32_t{probability};
  return static_cast<std::uint16_t>(probability + (off * kReciprocal[weight] >> 16));
}

// Half octaves from 2^-10 up.
constexpr std::size_t kLevels = 20;
std::uint8_t level_of(std::uint32_t probability) {
  const std::uint32_t p = std::max(probability, kLeastLevel);
  const int octave = std::bit_width(p) - 1;
  return static_cast<std::uint8_t>(2 * (octave - 6) + static_cast<int>(p >> (octave - 1) & 1));
}
std::uint64_t middle_of(std::size_t level) {
  return (std::uint64_t{5} + 2 * (level % 2)) << (level / 2 + 4);
}

// How dense a row or a column has been so far.
struct Density {
  std::uint16_t probability;
  std::uint8_t level;
  std::uint8_t weight;

  void see(bool set) {
    probability = moved(probability, set, weight);
    level = level_of(probability);
    if (weight < 255) ++weight;
  }
};

// How likely an entry is set where row and column have been so dense.
struct Context {
  std::uint16_t probability;
  std::uint16_t weight;

  std::uint32_t coded() const { return std::clamp<std::uint32_t>(probability, kLeast, kMost); }
  void see(bool set) {
    probability = moved(probability, set, weight);
    if (weight < 512) ++weight;
  }
};

class ContextModel {
 public:
  ContextModel(std::int64_t ones, std::int64_t entries) {
    const auto density = static_cast<std::uint32_t>(
        std::clamp<std::int64_t>(ones * 65536 / entries, kLeastLevel, 65535));
    fresh_ = {static_cast<std::uint16_t>(density), level_of(density), 12};
    for (std::size_t row = 0; row < kLevels; ++row) {
      for (std::size_t column = 0; column < kLevels; ++column) {
        const std::uint64_t product = middle_of(row) * middle_of(column) / density;
        contexts_[row * kLevels + column] = {
            static_cast<std::uint16_t>(std::clamp<std::uint64_t>(product, kLeastLevel, 58982)), 24};
      }
    }
  }

  // Calls code(entry, probability of a set one), which returns whether it is set, for every entry
  // in order, as long as that does not say stop.
  template <typename Code>
  void walk(std::span<const BlockRows> rows, Code code) {
    std::int64_t entry = 0;
    for (const BlockRows& part : rows) {
      const int shift = shift_of(part.columns);
      std::fill_n(columns_.begin(), ((part.columns - 1) >> shift) + 1, fresh_);
      std::int64_t column = part.first;
      Density row = fresh_;
      for (std::int64_t i = 0; i < part.entries; ++i) {
        Density& of_column = columns_[static_cast<std::size_t>(column >> shift)];
        Context& context = contexts_[row.level * kLevels + of_column.level];
        const bool set = code(entry++, context.coded());
        context.see(set);
        of_column.see(set);
        row.see(set);
        if (++column == part.columns) {
          column = 0;
          row = fresh_;
        }
      }
    }
  }

 private:
  Density fresh_;
  std::array<Context, kLevels * kLevels> contexts_;
  std::array<Density, kMaxColumns> columns_;
};

// What has not been decided yet lies in [low, low + range).
class RangeEncoder {
 public:
  RangeEncoder(std::byte* out, std::size_t room) : out_(out), room_(room) {}

  void put(bool set, std::uint32_t probability) {
    const std::uint32_t bound = (range_ >> 16) * probability;
    if (set) {
      range_ = bound;
    } else {
      low_ += bound;
      range_ -= bound;
    }
    while (range_ < 1u << 24) {
      shift();
      range_ <<= 8;
    }
  }
  // Bytes written; 0 where there was no room for them.
  std::size_t finish() {
    for (int i = 0; i < 5; ++i) shift();
    return full_ ? 0 : used_;
  }

 private:
  // A byte leaves when no carry can reach it any more.
  void shift() {
    const auto carry = static_cast<std::uint32_t>(low_ >> 32);
    if (static_cast<std::uint32_t>(low_) < 0xFF000000u || carry != 0) {
      if (begun_) emit(cache_ + carry);
      for (; waiting_ > 0; --waiting_) emit(0xFF + carry);
      begun_ = true;
      cache_ = static_cast<std::uint32_t>(low_) >> 24;
    } else {
      ++waiting_;
    }
    low_ = (low_ & 0xFFFFFF) << 8;
  }
  void emit(std::uint32_t byte) {
    full_ = full_ || used_ == room_;
    if (!full_) out_[used_++] = static_cast<std::byte>(byte);
  }

  std::byte* const out_;
  const std::size_t room_;
  std::size_t used_ = 0;
  std::uint64_t low_ = 0;
  std::uint32_t range_ = 0xFFFFFFFF, cache_ = 0;
  std::size_t waiting_ = 0;
  bool begun_ = false, full_ = false;
};

class RangeDecoder {
 public:
  explicit RangeDecoder(std::span<const std::byte> in) : in_(in) {
    for (int i = 0; i < 4; ++i) code_ = code_ << 8 | next();
  }

  bool get(std::uint32_t probability) {
    const std::uint32_t bound = (range_ >> 16) * probability;
    const bool set = code_ < bound;
    if (set) {
      range_ = bound;
    } else {
      code_ -= bound;
      range_ -= bound;
    }
    while (range_ < 1u << 24) {
      code_ = code_ << 8 | next();
      range_ <<= 8;
    }
    return set;
  }
  // Whether these are the bytes of an encoder, which ends with its low in full.
  bool finished() const { return at_ == in_.size() && code_ == 0; }

 private:
  std::uint32_t next() {
    // Past the end at_ goes on, so that such a stream is not finished.
    const std::size_t at = at_++;
    return at < in_.size() ? std::to_integer<std::uint32_t>(in_[at]) : 0;
  }

  const std::span<const std::byte> in_;
  std::size_t at_ = 0;
  std::uint32_t range_ = 0xFFFFFFFF, code_ = 0;
};

bool bit_of(std::span<const std::uint64_t> words, std::int64_t i) {
  return (words[static_cast<std::size_t>(i / 64)] >> (i % 64) & 1) != 0;
}

// Calls visit(entry) for every set entry of `words`, in order.
template <typename Visit>
void for_each_set(std::span<const std::uint64_t> words, Visit visit) {
  for (std::size_t w = 0; w < words.size(); ++w) {
    for (std::uint64_t bits = words[w]; bits != 0; bits &= bits - 1)
      visit(static_cast<std::int64_t>(64 * w) + std::countr_zero(bits));
  }
}

// Squares of what counts are off their expectation, over its variance: about 1 each by chance.
double dispersion(double count, double length, double density) {
  const double off = count - length * density;
  return off * off / (length * density * (1 - density));
}

}  // namespace

double context_gain(PlanesView block, std::span<const BlockRows> rows) {
  std::array<std::uint32_t, kMaxColumns> columns;
  double excess = 0;
  std::int64_t begin = 0;
  for (const BlockRows& part : rows) {
    const int shift = shift_of(part.columns);
    const auto groups = static_cast<std::size_t>(((part.columns - 1) >> shift) + 1);
    std::fill_n(columns.begin(), groups, 0);
    const std::int64_t end = begin + part.entries;
    const auto words = block.mask.subspan(static_cast<std::size_t>(begin / 64),
                                          static_cast<std::size_t>((end + 63) / 64 - begin / 64));
    const std::int64_t skipped = begin / 64 * 64;
    std::int64_t ones = 0, row = 0, of_row = 0;
    double of_rows = 0;  // Σ count²
    for_each_set(words, [&](std::int64_t at) {
      const std::int64_t entry = at + skipped - begin;
      if (entry < 0 || entry >= part.entries) return;
      const std::int64_t place = part.first + entry;
      if (place / part.columns != row) {
        of_rows += static_cast<double>(of_row * of_row);
        of_row = 0;
        row = place / part.columns;
      }
      ++of_row;
      ++ones;
      ++columns[static_cast<std::size_t>(place % part.columns >> shift)];
    });
    of_rows += static_cast<double>(of_row * of_row);
    begin = end;
    if (ones == 0 || ones == part.entries) continue;
    const double density = static_cast<double>(ones) / static_cast<double>(part.entries);
    const double numel = static_cast<double>(part.entries);
    const double height = numel / static_cast<double>(part.columns);
    // Σ (count − length · density)² over the rows, opened up; rows that the block cuts are few.
    const double length = std::min(static_cast<double>(part.columns), numel);
    if (height > 1) {
      excess +=
          (of_rows - numel * length * density * density) / (length * density * (1 - density)) -
          height;
      const double depth = numel / static_cast<double>(groups);
      for (std::size_t g = 0; g < groups; ++g) excess += dispersion(columns[g], depth, density) - 1;
    }
  }
  return 0.72 * excess;  // 1 / (2 ln 2)
}

std::size_t encode_contexts(PlanesView block, std::span<const BlockRows> rows, std::byte* out,
                            std::size_t limit) {
  const std::int64_t ones = count_nonzero(block);
  const auto sign_bytes = static_cast<std::size_t>((ones + 7) / 8);
  if (limit <= kBlockHeaderBytes + sign_bytes) return 0;
  out[0] = static_cast<std::byte>(BlockMode::kContexts);
  out[1] = std::byte{0};
  const auto count = static_cast<std::uint32_t>(ones);
  std::memcpy(out + 2, &count, 4);

  RangeEncoder coder(out + kBlockHeaderBytes, limit - kBlockHeaderBytes - sign_bytes);
  ContextModel(ones, block.numel).walk(rows, [&](std::int64_t entry, std::uint32_t probability) {
    const bool set = bit_of(block.mask, entry);
    coder.put(set, probability);
    return set;
  });
  const std::size_t used = coder.finish();
  if (used == 0) return 0;

  std::byte* const signs = out + kBlockHeaderBytes + used;
  std::fill_n(signs, sign_bytes, std::byte{0});
  std::int64_t n = 0;
  for_each_set(block.mask, [&](std::int64_t entry) {
    if (bit_of(block.sign, entry)) signs[n / 8] |= static_cast<std::byte>(1 << n % 8);
    ++n;
  });
  return kBlockHeaderBytes + used + sign_bytes;
}

BlockFault decode_contexts(std::span<const std::byte> in, std::int64_t ones, std::int64_t entries,
                           std::span<const BlockRows> rows, std::span<std::uint64_t> mask,
                           std::span<std::uint64_t> sign) {
  const auto sign_bytes = static_cast<std::size_t>((ones + 7) / 8);
  if (in.size() < sign_bytes) return BlockFault::kTruncated;
  const std::span<const std::byte> signs = in.last(sign_bytes);
  RangeDecoder coder(in.first(in.size() - sign_bytes));
  std::fill(mask.begin(), mask.end(), 0);
  std::fill(sign.begin(), sign.end(), 0);
  ContextModel(ones, entries).walk(rows, [&](std::int64_t entry, std::uint32_t probability) {
    const bool set = coder.get(probability);
    mask[static_cast<std::size_t>(entry / 64)] |= std::uint64_t{set} << (entry % 64);
    return set;
  });
  if (!coder.finished()) return BlockFault::kMask;
  if (popcount_words(mask) != ones) return BlockFault::kCount;
  std::int64_t n = 0;
  for_each_set(mask, [&](std::int64_t entry) {
    const auto byte = std::to_integer<std::uint64_t>(signs[static_cast<std::size_t>(n / 8)]);
    sign[static_cast<std::size_t>(entry / 64)] |= (byte >> n % 8 & 1) << (entry % 64);
    ++n;
  });
  if (ones % 8 != 0 && std::to_integer<unsigned>(signs.back()) >> (ones % 8) != 0)
    return BlockFault::kSigns;
  return BlockFault::kNone;
}

}  // namespace thinwire::peft::detail
