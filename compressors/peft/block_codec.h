// What bitstream.cpp calls in the SIMD-dispatched part of the block codec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "thinwire/compressors/peft/bitstream.h"

namespace thinwire::peft::detail {

// Which part of a block is not as it should be.
enum class BlockFault { kNone, kTruncated, kMode, kCount, kMask, kSigns };

// The caller has checked sizes of planes and output.
std::size_t encode_block_unchecked(PlanesView block, std::byte* out);
std::size_t encode_block_as_unchecked(BlockMode mode, PlanesView block, std::byte* out);
// Safe on any bytes.
BlockFault decode_block_unchecked(std::span<const std::byte> in, std::int64_t entries,
                                  std::span<const BlockRows> rows, std::span<std::uint64_t> mask,
                                  std::span<std::uint64_t> sign);

}  // namespace thinwire::peft::detail
