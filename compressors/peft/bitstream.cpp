#include "thinwire/compressors/peft/bitstream.h"

#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/block_codec.h"
#include "thinwire/compressors/peft/context_block.h"

namespace thinwire::peft {
namespace {

void check_block(PlanesView block, std::size_t room) {
  check(block.numel > 0 && block.numel <= kBlockEntries, "a block has 1 to ", kBlockEntries,
        " entries, got ", block.numel);
  check(room >= max_block_bytes(block.numel), "a block of ", block.numel, " entries needs ",
        max_block_bytes(block.numel), " bytes of room, got ", room);
}

void check_rows(std::span<const BlockRows> rows, std::int64_t entries) {
  std::int64_t covered = 0;
  for (const BlockRows& part : rows) {
    check(part.entries >= 0 && part.columns > 0 && part.first >= 0 && part.first < part.columns,
          "rows of ", part.columns, " columns cannot have ", part.entries, " entries from column ",
          part.first, " on");
    covered += part.entries;
  }
  check(rows.empty() || covered == entries, "the rows of a block have ", covered,
        " entries, the block ", entries);
}

const char* text_of(detail::BlockFault fault) {
  switch (fault) {
    case detail::BlockFault::kTruncated:
      return "it is too short";
    case detail::BlockFault::kMode:
      return "its mode is unknown";
    case detail::BlockFault::kCount:
      return "its number of set entries is wrong";
    case detail::BlockFault::kMask:
      return "its mask does not decode";
    case detail::BlockFault::kSigns:
      return "its signs do not decode";
    case detail::BlockFault::kNone:
      break;
  }
  return "";
}

constexpr std::size_t kLengthBytes = 4;

// Calls visit(block, bytes) for every block of a stream.
template <typename Visit>
void walk_stream(std::span<const std::byte> in, std::int64_t numel, Visit visit) {
  for (std::int64_t block = 0; block < block_count(numel); ++block) {
    if (in.size() < kLengthBytes)
      throw FrameError(concat("ternary stream of ", numel, " entries ends before block ", block));
    std::uint32_t length;
    std::memcpy(&length, in.data(), kLengthBytes);
    in = in.subspan(kLengthBytes);
    if (length > in.size())
      throw FrameError(concat("ternary stream: block ", block, " claims ", length,
                              " bytes, but only ", in.size(), " follow"));
    visit(block, in.first(length));
    in = in.subspan(length);
  }
  if (!in.empty())
    throw FrameError(concat("ternary stream: ", in.size(), " bytes follow the last block"));
}

}  // namespace

const char* name_of(BlockMode mode) {
  switch (mode) {
    case BlockMode::kEmpty:
      return "empty";
    case BlockMode::kRice:
      return "rice";
    case BlockMode::kRans:
      return "rans";
    case BlockMode::kMaskSigns:
      return "mask+signs";
    case BlockMode::kPlanes:
      return "planes";
    case BlockMode::kContexts:
      return "contexts";
  }
  return "unknown";
}

std::size_t encode_block(PlanesView block, std::span<std::byte> out,
                         std::span<const BlockRows> rows) {
  check_block(block, out.size());
  check_rows(rows, block.numel);
  const std::size_t used = detail::encode_block_unchecked(block, out.data());
  const std::size_t limit = used - used / 40;
  if (rows.empty() || limit == used) return used;
  if (detail::context_gain(block, rows) * 40 < static_cast<double>(8 * used)) return used;
  if (const std::size_t less = detail::encode_contexts(block, rows, out.data(), limit)) return less;
  return detail::encode_block_unchecked(block, out.data());
}

std::size_t encode_block_as(BlockMode mode, PlanesView block, std::span<std::byte> out,
                            std::span<const BlockRows> rows) {
  check_block(block, out.size());
  check_rows(rows, block.numel);
  if (mode != BlockMode::kContexts)
    return detail::encode_block_as_unchecked(mode, block, out.data());
  if (rows.empty() || count_nonzero(block) == 0) return 0;
  return detail::encode_contexts(block, rows, out.data(), max_block_bytes(block.numel));
}

void decode_block(std::span<const std::byte> in, std::int64_t entries,
                  std::span<std::uint64_t> mask, std::span<std::uint64_t> sign,
                  std::span<const BlockRows> rows) {
  check(entries > 0 && entries <= kBlockEntries, "a block has 1 to ", kBlockEntries,
        " entries, got ", entries);
  const auto words = static_cast<std::size_t>(words_for(entries));
  check(mask.size() == words && sign.size() == words, "planes of ", entries, " entries have ",
        words, " words, got ", mask.size(), " and ", sign.size());
  check_rows(rows, entries);
  const auto fault = detail::decode_block_unchecked(in, entries, rows, mask, sign);
  if (fault != detail::BlockFault::kNone)
    throw FrameError(concat("ternary block of ", in.size(), " bytes for ", entries,
                            " entries is damaged: ", text_of(fault)));
}

std::size_t max_stream_bytes(std::int64_t numel) {
  check(numel >= 0, "a stream cannot have ", numel, " entries");
  const std::int64_t blocks = block_count(numel);
  if (blocks == 0) return 0;
  const auto full = static_cast<std::size_t>(blocks - 1);
  return static_cast<std::size_t>(blocks) * kLengthBytes + full * max_block_bytes(kBlockEntries) +
         max_block_bytes(block_entries(numel, blocks - 1));
}

std::size_t encode_stream(PlanesView planes, std::span<std::byte> out) {
  check(out.size() >= max_stream_bytes(planes.numel), "a stream of ", planes.numel,
        " entries needs ", max_stream_bytes(planes.numel), " bytes of room, got ", out.size());
  std::size_t used = 0;
  for (std::int64_t block = 0; block < block_count(planes.numel); ++block) {
    const auto part = planes.slice(block * kBlockEntries, block_entries(planes.numel, block));
    const auto length = static_cast<std::uint32_t>(
        detail::encode_block_unchecked(part, out.data() + used + kLengthBytes));
    std::memcpy(out.data() + used, &length, kLengthBytes);
    used += kLengthBytes + length;
  }
  return used;
}

void decode_stream(std::span<const std::byte> in, std::int64_t numel, std::span<std::uint64_t> mask,
                   std::span<std::uint64_t> sign) {
  const auto words = static_cast<std::size_t>(words_for(numel));
  check(mask.size() == words && sign.size() == words, "planes of ", numel, " entries have ", words,
        " words, got ", mask.size(), " and ", sign.size());
  walk_stream(in, numel, [&](std::int64_t block, std::span<const std::byte> bytes) {
    const std::int64_t entries = block_entries(numel, block);
    const auto first = static_cast<std::size_t>(block) * kBlockWords;
    const auto count = static_cast<std::size_t>(words_for(entries));
    decode_block(bytes, entries, mask.subspan(first, count), sign.subspan(first, count));
  });
}

void decode_stream_blockwise(std::span<const std::byte> in, std::int64_t numel,
                             std::span<std::uint64_t> mask, std::span<std::uint64_t> sign,
                             const std::function<void(std::int64_t, PlanesView)>& visit) {
  check(mask.size() >= kBlockWords && sign.size() >= kBlockWords,
        "blockwise decoding needs planes of ", kBlockWords, " words, got ", mask.size(), " and ",
        sign.size());
  walk_stream(in, numel, [&](std::int64_t block, std::span<const std::byte> bytes) {
    const std::int64_t entries = block_entries(numel, block);
    const auto count = static_cast<std::size_t>(words_for(entries));
    decode_block(bytes, entries, mask.first(count), sign.first(count));
    visit(block * kBlockEntries, {mask.first(count), sign.first(count), entries});
  });
}

}  // namespace thinwire::peft
