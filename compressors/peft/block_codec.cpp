// One block to bytes and back, compiled once for every SIMD target. See docs/peft-format.md.
#include <algorithm>
#include <cstring>

#include "thinwire/compressors/peft/bitstream.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "thinwire/compressors/peft/block_codec.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "thinwire/compressors/kernels/dispatch.h"
#include "thinwire/compressors/peft/block_bits-inl.h"
#include "thinwire/compressors/peft/block_codec.h"
#include "thinwire/compressors/peft/block_rans-inl.h"
#include "thinwire/compressors/peft/block_rice-inl.h"
#include "thinwire/compressors/peft/context_block.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::peft::HWY_NAMESPACE {

inline std::size_t Finish(BlockMode mode, int parameter, std::int64_t ones, std::byte* out,
                          const std::byte* end) {
  out[0] = static_cast<std::byte>(mode);
  out[1] = static_cast<std::byte>(parameter);
  const auto count = static_cast<std::uint32_t>(ones);
  std::memcpy(out + 2, &count, 4);
  return static_cast<std::size_t>(end - out);
}

// Returns 0 where the mode does not fit into max_block_bytes().
std::size_t EncodeAs(BlockMode mode, int parameter, PlanesView block, std::int64_t ones,
                     std::byte* out) {
  const auto plane_bytes = static_cast<std::size_t>((block.numel + 7) / 8);
  const auto sign_bytes = static_cast<std::size_t>((ones + 7) / 8);
  std::byte* body = out + kBlockHeaderBytes;
  switch (mode) {
    case BlockMode::kEmpty:
      return ones == 0 ? Finish(mode, 0, 0, out, body) : 0;
    case BlockMode::kRice:
      body = EncodeRice(block.mask, parameter, body);
      body = PackSigns(block.mask, block.sign, body);
      return Finish(mode, parameter, ones, out, body);
    case BlockMode::kRans: {
      const std::size_t used =
          EncodeRans(block.mask, block.numel, parameter, body, 2 * plane_bytes - sign_bytes);
      if (used == 0) return 0;
      body = PackSigns(block.mask, block.sign, body + used);
      return Finish(mode, parameter, ones, out, body);
    }
    case BlockMode::kMaskSigns:
      std::memcpy(body, block.mask.data(), plane_bytes);
      body = PackSigns(block.mask, block.sign, body + plane_bytes);
      return Finish(mode, 0, ones, out, body);
    case BlockMode::kPlanes:
      std::memcpy(body, block.mask.data(), plane_bytes);
      std::memcpy(body + plane_bytes, block.sign.data(), plane_bytes);
      return Finish(mode, 0, ones, out, body + 2 * plane_bytes);
    case BlockMode::kContexts:  // context_block.cpp
      break;
  }
  return 0;
}

std::int64_t CountOnes(std::span<const std::uint64_t> mask) {
  std::int64_t ones = 0;
  for (const std::uint64_t word : mask) ones += std::popcount(word);
  return ones;
}

std::size_t EncodeBlockAs(BlockMode mode, PlanesView block, std::byte* out) {
  const std::int64_t ones = CountOnes(block.mask);
  int parameter = 0;
  if (mode == BlockMode::kRice) {
    const RiceChoice choice = ChooseRice(block.mask, ones, block.numel);
    if ((choice.bits + 7) / 8 + (ones + 7) / 8 > 2 * ((block.numel + 7) / 8)) return 0;
    parameter = choice.parameter;
  }
  if (mode == BlockMode::kRans) parameter = ChooseRans(block.mask, block.numel).sub_block_bits;
  return EncodeAs(mode, parameter, block, ones, out);
}

std::size_t EncodeBlock(PlanesView block, std::byte* out) {
  const std::int64_t ones = CountOnes(block.mask);
  if (ones == 0) return EncodeAs(BlockMode::kEmpty, 0, block, 0, out);
  const std::int64_t plane_bits = 8 * ((block.numel + 7) / 8);
  const std::int64_t sign_bits = 8 * ((ones + 7) / 8);

  // On a tie the planes win, because they are the fastest to decode.
  BlockMode mode = BlockMode::kPlanes;
  std::int64_t best = 2 * plane_bits;
  if (plane_bits + sign_bits < best) {
    mode = BlockMode::kMaskSigns;
    best = plane_bits + sign_bits;
  }
  // Estimates choose between the coders, true sizes decide against the fixed ones. The time of Rice
  // grows with the set entries: below a tenth of them it is decoded faster than rANS, up to twice,
  // for which it may take half a percent more. Above, it has to be smaller beyond doubt: the
  // estimate, from a sample, may be off by half a percent.
  const double rice_allowance = ones < block.numel / 10 ? 1.005 : 0.99;
  const RansChoice rans = ChooseRans(block.mask, block.numel);
  const double rans_bits = rans.bits + static_cast<double>(sign_bits);
  const RiceChoice rice = EstimateRice(block.mask, ones, block.numel);
  const std::int64_t rice_bits = rice.bits + sign_bits;
  const std::int64_t capacity = 2 * plane_bits - sign_bits;
  const auto smaller = [&](std::size_t used) {
    return used != 0 && 8 * static_cast<std::int64_t>(used - kBlockHeaderBytes) < best;
  };
  if (rice_bits < best && static_cast<double>(rice_bits) <= rice_allowance * rans_bits &&
      RiceBound(rice.parameter, ones, block.numel) <= capacity) {
    const std::size_t used = EncodeAs(BlockMode::kRice, rice.parameter, block, ones, out);
    if (smaller(used)) return used;
  }
  if (rans_bits < static_cast<double>(best)) {
    const std::size_t used = EncodeAs(BlockMode::kRans, rans.sub_block_bits, block, ones, out);
    if (smaller(used)) return used;
  }
  return EncodeAs(mode, 0, block, ones, out);
}

// False unless the mask's part of a block, `in`, is exactly right.
inline bool DecodeMask(BlockMode mode, int parameter, std::span<const std::byte> in,
                       std::int64_t ones, std::int64_t entries, std::span<std::uint64_t> mask) {
  if (mode == BlockMode::kRice) return DecodeRice(in, parameter, ones, entries, mask);
  if (mode == BlockMode::kRans) return DecodeRans(in, entries, parameter, mask);
  if (in.size() != static_cast<std::size_t>((entries + 7) / 8) || parameter != 0) return false;
  std::memcpy(mask.data(), in.data(), in.size());
  return true;
}

detail::BlockFault DecodeBlock(std::span<const std::byte> in, std::int64_t entries,
                               std::span<const BlockRows> rows, std::span<std::uint64_t> mask,
                               std::span<std::uint64_t> sign) {
  using detail::BlockFault;
  if (in.size() < kBlockHeaderBytes) return BlockFault::kTruncated;
  const auto mode_byte = std::to_integer<unsigned>(in[0]);
  if (mode_byte > static_cast<unsigned>(BlockMode::kContexts)) return BlockFault::kMode;
  const auto mode = static_cast<BlockMode>(mode_byte);
  const int parameter = std::to_integer<int>(in[1]);
  std::uint32_t count;
  std::memcpy(&count, in.data() + 2, 4);
  const auto ones = static_cast<std::int64_t>(count);
  if (ones > entries || (ones == 0) != (mode == BlockMode::kEmpty)) return BlockFault::kCount;
  in = in.subspan(kBlockHeaderBytes);
  if (mode == BlockMode::kContexts) {
    if (rows.empty() || parameter != 0) return BlockFault::kMode;
    return detail::decode_contexts(in, ones, entries, rows, mask, sign);
  }
  std::fill(mask.begin(), mask.end(), 0);
  if (mode == BlockMode::kEmpty) {
    std::fill(sign.begin(), sign.end(), 0);
    return in.empty() && parameter == 0 ? BlockFault::kNone : BlockFault::kMask;
  }

  const auto sign_bytes =
      static_cast<std::size_t>(((mode == BlockMode::kPlanes ? entries : ones) + 7) / 8);
  if (in.size() < sign_bytes) return BlockFault::kTruncated;
  const std::span<const std::byte> signs = in.last(sign_bytes);
  if (!DecodeMask(mode, parameter, in.first(in.size() - sign_bytes), ones, entries, mask))
    return BlockFault::kMask;
  if (entries % 64 != 0 && mask.back() >> (entries % 64) != 0) return BlockFault::kMask;
  if (CountOnes(mask) != ones) return BlockFault::kCount;

  if (mode == BlockMode::kPlanes) {
    std::fill(sign.begin(), sign.end(), 0);
    std::memcpy(sign.data(), signs.data(), sign_bytes);
    for (std::size_t w = 0; w < sign.size(); ++w)
      if ((sign[w] & ~mask[w]) != 0) return BlockFault::kSigns;
    return BlockFault::kNone;
  }
  return UnpackSigns(signs, mask, sign) ? BlockFault::kNone : BlockFault::kSigns;
}

}  // namespace thinwire::peft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire::peft::detail {

HWY_EXPORT(EncodeBlock);
HWY_EXPORT(EncodeBlockAs);
HWY_EXPORT(DecodeBlock);

std::size_t encode_block_unchecked(PlanesView block, std::byte* out) {
  return THINWIRE_DISPATCH(EncodeBlock)(block, out);
}
std::size_t encode_block_as_unchecked(BlockMode mode, PlanesView block, std::byte* out) {
  return THINWIRE_DISPATCH(EncodeBlockAs)(mode, block, out);
}
BlockFault decode_block_unchecked(std::span<const std::byte> in, std::int64_t entries,
                                  std::span<const BlockRows> rows, std::span<std::uint64_t> mask,
                                  std::span<std::uint64_t> sign) {
  return THINWIRE_DISPATCH(DecodeBlock)(in, entries, rows, mask, sign);
}

}  // namespace thinwire::peft::detail
#endif
