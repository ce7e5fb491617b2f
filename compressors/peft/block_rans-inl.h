// The range coder of mask bytes, compiled once for every SIMD target. See rans_model.h.
//
// Layout: one level a sub-block of 2^s entries (0: no entry set, nothing coded), the eight final
// states of the encoder as 32 bits each, then 16-bit words in the order in which they are read.
// The encoder runs backwards from the states 2^16, to which the decoder must come back.
#if defined(THINWIRE_PEFT_BLOCK_RANS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_PEFT_BLOCK_RANS_INL_H
#undef THINWIRE_PEFT_BLOCK_RANS_INL_H
#else
#define THINWIRE_PEFT_BLOCK_RANS_INL_H
#endif

#include <algorithm>
#include <array>

#include "thinwire/compressors/peft/bitstream.h"
#include "thinwire/compressors/peft/block_bits-inl.h"
#include "thinwire/compressors/peft/rans_model.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::peft::HWY_NAMESPACE {

using detail::kRansBits;
using detail::kRansLow;
using detail::kRansStates;
using detail::kRansTotal;
using detail::RansModel;

inline constexpr int kMinSubBlockBits = 9;
inline constexpr int kMaxSubBlockBits = 18;
inline constexpr std::size_t kMaxSubBlocks = std::size_t{1}
                                             << (kMaxSubBlockBits - kMinSubBlockBits);
inline constexpr std::size_t kStateBytes = 4 * kRansStates;

constexpr std::size_t SubBlocks(std::int64_t entries, int bits) {
  return static_cast<std::size_t>((entries + (std::int64_t{1} << bits) - 1) >> bits);
}

struct RansChoice {
  int sub_block_bits = kMaxSubBlockBits;
  double bits = 0;  // estimate of levels, states and words
};

// The best of several sub-block sizes, from the number of set entries in runs of 512.
inline RansChoice ChooseRans(std::span<const std::uint64_t> mask, std::int64_t entries) {
  std::array<std::int32_t, kMaxSubBlocks> ones;
  const std::size_t fine = SubBlocks(entries, kMinSubBlockBits);
  for (std::size_t i = 0; i < fine; ++i) {
    std::int32_t count = 0;
    for (std::size_t w = 8 * i; w < std::min(8 * i + 8, mask.size()); ++w)
      count += std::popcount(mask[w]);
    ones[i] = count;
  }
  RansChoice best;
  bool first = true;
  for (const int bits : {kMaxSubBlockBits, 14, 12, 10, kMinSubBlockBits}) {
    const std::size_t step = std::size_t{1} << (bits - kMinSubBlockBits);
    const std::size_t parts = SubBlocks(entries, bits);
    double cost = 8.0 * static_cast<double>(parts + kStateBytes / 2);
    for (std::size_t i = 0; i < parts; ++i) {
      std::int64_t count = 0;
      for (std::size_t j = i * step; j < std::min((i + 1) * step, fine); ++j) count += ones[j];
      const std::int64_t length =
          std::min(std::int64_t{1} << bits, entries - (static_cast<std::int64_t>(i) << bits));
      cost += detail::level_cost(detail::best_level(count, length), count, length);
    }
    if (first || cost < best.bits) best = {bits, cost};
    first = false;
  }
  return best;
}

// Writes levels, states and words; returns the bytes written, or 0 where they pass `capacity`.
inline std::size_t EncodeRans(std::span<const std::uint64_t> mask, std::int64_t entries,
                              int sub_block_bits, std::byte* out, std::size_t capacity) {
  const std::size_t parts = SubBlocks(entries, sub_block_bits);
  const auto bytes_per_part = std::size_t{1} << (sub_block_bits - 3);
  const auto bytes = static_cast<std::size_t>((entries + 7) / 8);
  if (parts + kStateBytes > capacity) return 0;
  // A byte costs at most kRansBits < 16 bits: one word a byte is always enough.
  std::array<std::uint16_t, kBlockEntries / 8> words;
  std::uint16_t* front = words.data() + words.size();
  std::array<std::uint32_t, kRansStates> states;
  states.fill(kRansLow);

  const auto* symbols = reinterpret_cast<const unsigned char*>(mask.data());
  for (std::size_t part = parts; part-- > 0;) {
    const std::size_t begin = part * bytes_per_part;
    const std::size_t end = std::min(begin + bytes_per_part, bytes);
    std::int64_t ones = 0;
    for (std::size_t w = begin / 8; w < (end + 7) / 8; ++w) ones += std::popcount(mask[w]);
    const std::int64_t length =
        std::min(std::int64_t{1} << sub_block_bits,
                 entries - (static_cast<std::int64_t>(part) << sub_block_bits));
    const int level = detail::best_level(ones, length);
    out[part] = static_cast<std::byte>(level);
    if (level == 0) continue;
    const RansModel& model = detail::rans_model(level);
    const auto put = [&](std::uint32_t& state, std::size_t i) {
      const RansModel::Encode& symbol = model.encode[symbols[i]];
      std::uint64_t x = state;
      const std::uint64_t frequency = symbol.frequency;
      // Whether a word leaves is as good as random: arithmetic instead of a branch.
      const std::uint64_t full = x >= frequency << (32 - kRansBits) ? 1 : 0;
      *(front - 1) = static_cast<std::uint16_t>(x);
      front -= full;
      x >>= 16 * full;
      const std::uint64_t quotient = (x * symbol.reciprocal) >> detail::kReciprocalBits;
      state = static_cast<std::uint32_t>(x + symbol.start + quotient * (kRansTotal - frequency));
    };
    std::size_t i = end;
    for (; i % kRansStates != 0; --i) put(states[(i - 1) % kRansStates], i - 1);
    for (; i > begin; i -= kRansStates) {
      put(states[7], i - 1);
      put(states[6], i - 2);
      put(states[5], i - 3);
      put(states[4], i - 4);
      put(states[3], i - 5);
      put(states[2], i - 6);
      put(states[1], i - 7);
      put(states[0], i - 8);
    }
  }

  const auto word_bytes = 2 * static_cast<std::size_t>(words.data() + words.size() - front);
  const std::size_t total = parts + kStateBytes + word_bytes;
  if (total > capacity) return 0;
  std::memcpy(out + parts, states.data(), kStateBytes);
  std::memcpy(out + parts + kStateBytes, front, word_bytes);
  return total;
}

// One symbol; the word that may be needed is at `in`.
HWY_INLINE std::uint64_t RansStep(const RansModel& model, std::uint32_t& state,
                                  const std::byte*& in) {
  std::uint32_t x = state;
  const std::uint32_t slot = x & (kRansTotal - 1);
  const std::uint8_t symbol = model.symbol_of_slot[slot];
  const RansModel::Decode entry = model.decode[symbol];
  x = entry.frequency * (x >> kRansBits) + slot - entry.start;
  std::uint16_t word;
  std::memcpy(&word, in, 2);
  // Whether a word is due is as good as random: arithmetic instead of a branch.
  const std::uint32_t low = x < kRansLow ? 1 : 0;
  x = x << (16 * low) | (word & (0 - low));
  in += 2 * low;
  state = x;
  return symbol;
}

// Fills `mask`, zero before; false unless `in` is exactly what EncodeRans() writes.
inline bool DecodeRans(std::span<const std::byte> in, std::int64_t entries, int sub_block_bits,
                       std::span<std::uint64_t> mask) {
  if (sub_block_bits < kMinSubBlockBits || sub_block_bits > kMaxSubBlockBits) return false;
  const std::size_t parts = SubBlocks(entries, sub_block_bits);
  if (in.size() < parts + kStateBytes || (in.size() - parts) % 2 != 0) return false;
  std::array<std::uint32_t, kRansStates> states;
  std::memcpy(states.data(), in.data() + parts, kStateBytes);
  for (const std::uint32_t state : states)
    if (state < kRansLow) return false;
  const std::byte* next = in.data() + parts + kStateBytes;
  const std::byte* const end = in.data() + in.size();
  const auto bytes_per_part = std::size_t{1} << (sub_block_bits - 3);
  const auto bytes = static_cast<std::size_t>((entries + 7) / 8);

  for (std::size_t part = 0; part < parts; ++part) {
    const int level = std::to_integer<int>(in[part]);
    if (level == 0) continue;
    const RansModel& model = detail::rans_model(level);
    std::size_t i = part * bytes_per_part;
    const std::size_t stop = std::min(i + bytes_per_part, bytes);
    // Eight symbols need at most eight words.
    std::array<std::uint32_t, kRansStates> s = states;
    for (; i + 8 <= stop && end - next >= 16; i += 8) {
      std::uint64_t word = RansStep(model, s[0], next);
      word |= RansStep(model, s[1], next) << 8;
      word |= RansStep(model, s[2], next) << 16;
      word |= RansStep(model, s[3], next) << 24;
      word |= RansStep(model, s[4], next) << 32;
      word |= RansStep(model, s[5], next) << 40;
      word |= RansStep(model, s[6], next) << 48;
      word |= RansStep(model, s[7], next) << 56;
      mask[i / 8] = word;
    }
    for (; i < stop; ++i) {
      // The last words: a copy keeps the two bytes that RansStep() reads inside memory of ours.
      std::array<std::byte, 2> last{};
      if (end - next >= 2) std::memcpy(last.data(), next, 2);
      const std::byte* cursor = last.data();
      const std::uint64_t symbol = RansStep(model, s[i % kRansStates], cursor);
      if (cursor != last.data()) {
        if (end - next < 2) return false;
        next += 2;
      }
      mask[i / 8] |= symbol << (8 * (i % 8));
    }
    states = s;
  }
  if (next != end) return false;
  return std::all_of(states.begin(), states.end(), [](std::uint32_t x) { return x == kRansLow; });
}

}  // namespace thinwire::peft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
