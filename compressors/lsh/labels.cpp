// Which rows share a cluster: numbering by first occurrence.

#include <bit>
#include <cstring>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "thinwire/common/error.h"
#include "thinwire/compressors/lsh/cluster.h"

namespace thinwire::lsh {
namespace {

// Numbers 64-bit keys by their first occurrence; open addressing, at most `capacity` keys.
class FirstOccurrence {
 public:
  explicit FirstOccurrence(std::size_t capacity)
      : slots_(std::bit_ceil(2 * capacity + 2), Slot{0, kEmpty}) {}

  std::int32_t number_of(std::uint64_t key) {
    // Fibonacci hashing: the high bits of the product depend on all bits of the key.
    const int shift = 64 - std::countr_zero(slots_.size());
    std::size_t at = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> shift);
    while (slots_[at].number != kEmpty && slots_[at].key != key) {
      at = (at + 1) & (slots_.size() - 1);
    }
    if (slots_[at].number == kEmpty) slots_[at] = {key, count_++};
    return slots_[at].number;
  }

  // A number that no key has.
  std::int32_t own_number() { return count_++; }
  std::int32_t count() const { return count_; }

 private:
  static constexpr std::int32_t kEmpty = -1;
  struct Slot {
    std::uint64_t key;
    std::int32_t number;
  };
  std::vector<Slot> slots_;
  std::int32_t count_ = 0;
};

void check_rows(const GroupedRows& rows, std::int64_t tokens) {
  check(rows.rows() <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 rows, got ",
        rows.rows());
  check(!rows.group_begin.empty() && rows.group_begin.front() == 0 &&
            rows.group_begin.back() == rows.rows(),
        "the groups must cover all ", rows.rows(), " rows");
  for (std::size_t g = 1; g < rows.group_begin.size(); ++g) {
    check(rows.group_begin[g - 1] <= rows.group_begin[g],
          "the groups must be in ascending order, but group ", g - 1, " begins at row ",
          rows.group_begin[g - 1], " and ends at ", rows.group_begin[g]);
  }
  for (const std::int32_t token : rows.token) {
    check(token >= 0 && token < tokens, "row of token ", token, ", but there are ", tokens,
          " tokens");
  }
}

std::vector<std::int32_t> groups_of(const GroupedRows& rows) {
  std::vector<std::int32_t> group(rows.token.size());
  for (std::int64_t g = 0; g < rows.groups(); ++g) {
    for (std::int64_t r = rows.group_begin[static_cast<std::size_t>(g)];
         r < rows.group_begin[static_cast<std::size_t>(g) + 1]; ++r) {
      group[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(g);
    }
  }
  return group;
}

}  // namespace

std::vector<Labels> prefix_labels(std::span<const HashCode> codes, int hashes,
                                  const GroupedRows& rows) {
  check(hashes >= 1 && codes.size() % static_cast<std::size_t>(hashes) == 0,
        "codes of a whole number of tokens with ", hashes, " hashes each expected, got ",
        codes.size());
  const auto width = static_cast<std::size_t>(hashes);
  check_rows(rows, static_cast<std::int64_t>(codes.size() / width));

  std::vector<Labels> prefixes(width + 1);
  std::vector<std::int32_t> parent = groups_of(rows);
  for (std::size_t p = 0; p <= width; ++p) {
    // (cluster of the shorter prefix, next code) is an exact key of the longer prefix.
    FirstOccurrence numbers(rows.token.size());
    prefixes[p].of_row.resize(rows.token.size());
    for (std::size_t r = 0; r < rows.token.size(); ++r) {
      const HashCode* token = codes.data() + static_cast<std::size_t>(rows.token[r]) * width;
      const std::uint64_t code = p == 0 ? 0 : token[p - 1];
      const auto key = static_cast<std::uint64_t>(parent[r]) << 16 | code;
      prefixes[p].of_row[r] =
          token[0] == kUnhashable ? numbers.own_number() : numbers.number_of(key);
    }
    prefixes[p].count = numbers.count();
    parent = prefixes[p].of_row;
  }
  return prefixes;
}

Labels labels_of_prefix(std::span<const HashCode> codes, int hashes, int prefix,
                        const GroupedRows& rows) {
  check(hashes >= 1 && codes.size() % static_cast<std::size_t>(hashes) == 0,
        "codes of a whole number of tokens with ", hashes, " hashes each expected, got ",
        codes.size());
  check(prefix >= 0 && prefix <= hashes, "a prefix must lie in [0, ", hashes, "], got ", prefix);
  const auto width = static_cast<std::size_t>(hashes);
  check_rows(rows, static_cast<std::int64_t>(codes.size() / width));

  // Open addressing over a hash of the whole key; the key itself decides.
  struct Slot {
    std::uint64_t hash;
    const HashCode* codes;
    std::int32_t group, number;
  };
  const std::size_t size = std::bit_ceil(2 * rows.token.size() + 2);
  std::vector<Slot> slots(size, Slot{0, nullptr, 0, -1});
  const std::size_t key_bytes = static_cast<std::size_t>(prefix) * sizeof(HashCode);
  Labels labels;
  labels.of_row.resize(rows.token.size());
  for (std::int64_t g = 0; g < rows.groups(); ++g) {
    const auto group = static_cast<std::int32_t>(g);
    for (auto r = static_cast<std::size_t>(rows.group_begin[static_cast<std::size_t>(g)]);
         r < static_cast<std::size_t>(rows.group_begin[static_cast<std::size_t>(g) + 1]); ++r) {
      const HashCode* key = codes.data() + static_cast<std::size_t>(rows.token[r]) * width;
      if (key[0] == kUnhashable) {
        labels.of_row[r] = labels.count++;
        continue;
      }
      std::uint64_t hash = static_cast<std::uint64_t>(g) + 1;
      for (int p = 0; p < prefix; ++p) hash = (hash ^ key[p]) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 32;  // products move entropy up only
      std::size_t at = hash & (size - 1);
      while (slots[at].number >= 0 && (slots[at].hash != hash || slots[at].group != group ||
                                       std::memcmp(slots[at].codes, key, key_bytes) != 0)) {
        at = (at + 1) & (size - 1);
      }
      if (slots[at].number < 0) slots[at] = {hash, key, group, labels.count++};
      labels.of_row[r] = slots[at].number;
    }
  }
  return labels;
}

Labels duplicate_labels(std::span<const std::byte> tokens, std::int64_t token_bytes,
                        const GroupedRows& rows) {
  check(token_bytes >= 1 && tokens.size() % static_cast<std::size_t>(token_bytes) == 0,
        "whole tokens of ", token_bytes, " bytes expected, got ", tokens.size(), " bytes");
  const auto bytes = static_cast<std::size_t>(token_bytes);
  const std::size_t count = tokens.size() / bytes;
  check_rows(rows, static_cast<std::int64_t>(count));

  // Tokens with equal bytes get one number, then rows are told apart by (group, number).
  std::unordered_map<std::string_view, std::int32_t> first;
  first.reserve(count);
  std::vector<std::int32_t> number(count);
  for (std::size_t t = 0; t < count; ++t) {
    const std::string_view content(reinterpret_cast<const char*>(tokens.data()) + t * bytes, bytes);
    number[t] = first.try_emplace(content, static_cast<std::int32_t>(t)).first->second;
  }
  const auto group = groups_of(rows);
  FirstOccurrence numbers(rows.token.size());
  Labels labels;
  labels.of_row.resize(rows.token.size());
  for (std::size_t r = 0; r < rows.token.size(); ++r) {
    const auto token = static_cast<std::size_t>(rows.token[r]);
    const auto key =
        static_cast<std::uint64_t>(group[r]) << 32 | static_cast<std::uint32_t>(number[token]);
    labels.of_row[r] = numbers.number_of(key);
  }
  labels.count = numbers.count();
  return labels;
}

}  // namespace thinwire::lsh
