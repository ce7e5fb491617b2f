// Blocks whose density varies by row and by column: the mask by a binary range coder that learns,
// while it goes, how dense each row and each column is. The byte format is docs/peft-format.md,
// mode 5.
//
// Martin, "Range encoding", 1979; the carry as in LZMA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/compressors/peft/bitstream.h"
#include "thinwire/compressors/peft/block_codec.h"

namespace thinwire::peft::detail {

// Bits that densities by row and by column would save against one for each tensor, nearly: what
// their counts differ by beyond chance. A pass over the set entries.
double context_gain(PlanesView block, std::span<const BlockRows> rows);

// Writes the block with its header; 0 where that takes more than `limit` bytes, of which `out` then
// holds any. At least one entry must be set.
std::size_t encode_contexts(PlanesView block, std::span<const BlockRows> rows, std::byte* out,
                            std::size_t limit);

// `in` begins after the header. Safe on any bytes.
BlockFault decode_contexts(std::span<const std::byte> in, std::int64_t ones, std::int64_t entries,
                           std::span<const BlockRows> rows, std::span<std::uint64_t> mask,
                           std::span<std::uint64_t> sign);

}  // namespace thinwire::peft::detail
