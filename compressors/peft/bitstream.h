// Ternary vectors as bytes: entropy-coded blocks near the bound of H(k) + k bits per entry.
//
// A vector is cut into blocks of kBlockEntries entries; each is coded by whichever of these gives
// the fewest bytes, so that a vector whose density varies takes less than one global model would:
//
//   kEmpty      no entry is set
//   kRice       gaps between set entries as Golomb-Rice codes, then the signs
//   kRans       bytes of the mask by a range coder (rANS, Duda, arXiv 1311.2540) under the model
//               "every entry is set with probability L / 256"; L may change every 2^s entries
//   kMaskSigns  the mask as it is, then the signs
//   kPlanes     mask and sign as they are: the floor, two bits an entry
//   kContexts   the mask by a binary range coder that learns how dense each row and each column is,
//               then the signs; only where the rows are known to both sides, as in a file
//
// The byte format is docs/peft-format.md. All functions are thread-safe, and none allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "thinwire/compressors/peft/ternary_planes.h"

namespace thinwire::peft {

// 256 Ki entries: with fewer the 14 bytes that each block costs in a file pass 0.5 % of the payload
// at a density of 1 %; with more the planes of a block (64 KiB) leave the second-level cache.
inline constexpr std::int64_t kBlockEntries = std::int64_t{1} << 18;
inline constexpr std::size_t kBlockWords = static_cast<std::size_t>(kBlockEntries / 64);

enum class BlockMode : std::uint8_t {
  kEmpty = 0,
  kRice = 1,
  kRans = 2,
  kMaskSigns = 3,
  kPlanes = 4,
  kContexts = 5
};
const char* name_of(BlockMode mode);

// mode, parameter, number of set entries (32 bits).
inline constexpr std::size_t kBlockHeaderBytes = 6;

constexpr std::int64_t block_count(std::int64_t numel) {
  return (numel + kBlockEntries - 1) / kBlockEntries;
}
constexpr std::int64_t block_entries(std::int64_t numel, std::int64_t block) {
  const std::int64_t rest = numel - block * kBlockEntries;
  return rest < kBlockEntries ? rest : kBlockEntries;
}

// Consecutive entries of a block that lie in rows of `columns`; `first` is the column of the first
// of them.
struct BlockRows {
  std::int64_t entries = 0;
  std::int64_t columns = 1;
  std::int64_t first = 0;
};

// Most bytes that encode_block() writes for a block of that many entries: the header and two
// planes.
constexpr std::size_t max_block_bytes(std::int64_t entries) {
  return kBlockHeaderBytes + 2 * static_cast<std::size_t>((entries + 7) / 8);
}

// Encodes 1 to kBlockEntries entries into `out`, which must hold max_block_bytes(block.numel);
// returns the bytes written. `rows`, where given, cover the entries; kContexts, which takes 17 ns
// an entry where others take a third of one, is chosen where it saves at least a fortieth.
std::size_t encode_block(PlanesView block, std::span<std::byte> out,
                         std::span<const BlockRows> rows = {});
// The same, in the given mode whatever its size; 0 if the mode cannot hold the block or would pass
// the bound. For tests and measurements.
std::size_t encode_block_as(BlockMode mode, PlanesView block, std::span<std::byte> out,
                            std::span<const BlockRows> rows = {});

// Decodes one block of `entries` entries into planes of words_for(entries) words. Throws FrameError
// unless `in` is exactly one well-formed block (nothing left over, all padding zero, the count and
// the coder's final state right); never reads or writes out of bounds, whatever the bytes. After an
// error the planes hold nothing useful. `rows` as for encode_block(); without them kContexts is
// refused.
void decode_block(std::span<const std::byte> in, std::int64_t entries,
                  std::span<std::uint64_t> mask, std::span<std::uint64_t> sign,
                  std::span<const BlockRows> rows = {});

// Whole vectors for the wire, without checksums (frames have their own): for every block its
// length as 32 bits, then the block.
std::size_t max_stream_bytes(std::int64_t numel);
// Returns the bytes written to `out`, which must hold max_stream_bytes(planes.numel).
std::size_t encode_stream(PlanesView planes, std::span<std::byte> out);
// Throws FrameError like decode_block(), also where blocks are missing or bytes are left over.
void decode_stream(std::span<const std::byte> in, std::int64_t numel, std::span<std::uint64_t> mask,
                   std::span<std::uint64_t> sign);
// Hands one decoded block after the other to `visit(first entry, planes)`, in O(block) memory of
// the caller: both buffers hold kBlockWords words.
void decode_stream_blockwise(std::span<const std::byte> in, std::int64_t numel,
                             std::span<std::uint64_t> mask, std::span<std::uint64_t> sign,
                             const std::function<void(std::int64_t, PlanesView)>& visit);

}  // namespace thinwire::peft
