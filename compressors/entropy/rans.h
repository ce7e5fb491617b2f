// Entropy coding of small alphabets: interleaved range coders (rANS) that step together.
//
// Terms: a *stream* is a row of *segments*, each a run of symbols under one table. `lanes`
// independent coders take turns: symbol i of a segment belongs to lane i mod lanes, and a group of
// `lanes` symbols is coded in one step. The coders' states go on from segment to segment.
//
// A state x lies in [2^15, 2^31). Coding a symbol of frequency f and start c (in 2^-14):
//
//   decode   slot = x mod 2^14; the symbol is the s with start(s) ≤ slot < start(s + 1);
//            x ← f · ⌊x / 2^14⌋ + slot − c;  where x < 2^15: x ← 2^16 x + next word of 16 bits
//   encode   the inverse, from the last symbol of the stream to the first
//
// Layout: 16-bit words in the order in which they are written, then the states as 32 bits each. The
// decoder begins with the states and reads the words backwards; of one group the words lie in
// ascending order of the lanes, so that vectors of any width write and read the same bytes.
//
// Duda, "Asymmetric numeral systems", arXiv 1311.2540; Giesen, "Interleaved entropy coders",
// arXiv 1402.3392.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/compressors/entropy/symbol_table.h"

namespace thinwire::entropy {

struct alignas(64) RansStates {
  std::array<std::uint32_t, kMaxLanes> lane;
};

// Writes one stream. Not thread-safe, allocates nothing.
class RansEncoder {
 public:
  // `lanes` is one of those that lanes_for() gives.
  RansEncoder(std::span<std::byte> out, int lanes);

  // Segments from the last one to the first. Every symbol must have a frequency in the table.
  // False where the stream does not fit `out`; nothing more may then be asked of it.
  bool encode(const SymbolTable& table, std::span<const std::uint8_t> symbols);

  // Bytes of the stream; 0 where it does not fit.
  std::size_t finish();

 private:
  RansStates states_;
  const int lanes_;
  std::byte* const begin_;
  std::byte* const end_;
  std::byte* at_;
};

// Reads one stream, which may be any bytes: never out of bounds, and never a symbol without a
// frequency. Not thread-safe, allocates nothing.
class RansDecoder {
 public:
  // `in` is exactly one stream.
  RansDecoder(std::span<const std::byte> in, int lanes);

  // Segments from the first one to the last. False where the stream is damaged; nothing more may
  // then be asked of it.
  bool decode(const SymbolTable& table, std::span<std::uint8_t> symbols);

  // Whether the stream ends here as an encoder's does.
  bool finished() const;

 private:
  RansStates states_;
  const int lanes_;
  const std::byte* const begin_;
  const std::byte* at_;  // the words before it are unread
  bool valid_;
};

}  // namespace thinwire::entropy
