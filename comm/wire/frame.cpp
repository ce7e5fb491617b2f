#include "thinwire/comm/wire/frame.h"

#include <bit>
#include <cstring>

#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

static_assert(std::endian::native == std::endian::little,
              "frames and payloads are little-endian and copied as they lie in memory");

namespace thinwire {
namespace {

constexpr std::uint32_t kMagic = 0x46575754;  // "TWWF"
constexpr std::uint16_t kVersion = 1;

// Byte offsets; see docs/format.md.
enum Offset : std::size_t {
  kAtMagic = 0,
  kAtVersion = 4,
  kAtCodec = 6,
  kAtDType = 8,
  kAtStatus = 9,
  kAtReserved = 10,
  kAtSender = 12,
  kAtChunk = 16,
  kAtBlamed = 20,
  kAtLayout = 24,
  kAtSequence = 32,
  kAtNumel = 40,
  kAtPayloadBytes = 48,
  kAtPayloadCrc = 56,
  kAtHeaderCrc = 60,
};

template <typename T>
void put(std::span<std::byte> out, Offset at, T value) {
  std::memcpy(out.data() + at, &value, sizeof value);
}

template <typename T>
T get(std::span<const std::byte> in, Offset at) {
  T value;
  std::memcpy(&value, in.data() + at, sizeof value);
  return value;
}

template <typename T>
void expect(std::string_view field, T found, T expected, std::string_view from) {
  if (found != expected) {
    throw FrameError(concat("frame", from, ": ", field, " is ", +found, ", expected ", +expected));
  }
}

}  // namespace

void write_frame_header(FrameHeader header, std::span<const std::byte> payload,
                        std::span<std::byte> out) {
  THINWIRE_ASSERT(out.size() >= kFrameHeaderBytes);
  put(out, kAtMagic, kMagic);
  put(out, kAtVersion, kVersion);
  put(out, kAtCodec, header.codec_id);
  put(out, kAtDType, header.dtype);
  put(out, kAtStatus, header.status);
  put(out, kAtReserved, std::uint16_t{0});
  put(out, kAtSender, header.sender);
  put(out, kAtChunk, header.chunk);
  put(out, kAtBlamed, header.blamed_rank);
  put(out, kAtLayout, header.layout);
  put(out, kAtSequence, header.sequence);
  put(out, kAtNumel, header.numel);
  put(out, kAtPayloadBytes, static_cast<std::uint64_t>(payload.size()));
  put(out, kAtPayloadCrc, crc32c(payload));
  put(out, kAtHeaderCrc, crc32c(out.first(kAtHeaderCrc)));
}

FrameHeader read_frame_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kFrameHeaderBytes) {
    throw FrameError(
        concat("frame: ", bytes.size(), " bytes arrived, a header has ", kFrameHeaderBytes));
  }
  expect("the magic number", get<std::uint32_t>(bytes, kAtMagic), kMagic, "");
  expect("the version", get<std::uint16_t>(bytes, kAtVersion), kVersion, "");
  expect("the header's checksum", get<std::uint32_t>(bytes, kAtHeaderCrc),
         crc32c(bytes.first(kAtHeaderCrc)), "");
  expect("the reserved field", get<std::uint16_t>(bytes, kAtReserved), std::uint16_t{0}, "");
  const auto status = get<std::uint8_t>(bytes, kAtStatus);
  if (status > static_cast<std::uint8_t>(FrameHeader::Status::kFailed)) {
    throw FrameError(concat("frame: the status is ", +status, ", expected 0 to 3"));
  }
  FrameHeader header;
  header.codec_id = get<std::uint16_t>(bytes, kAtCodec);
  header.dtype = get<std::uint8_t>(bytes, kAtDType);
  header.status = static_cast<FrameHeader::Status>(status);
  header.sender = get<std::uint32_t>(bytes, kAtSender);
  header.chunk = get<std::uint32_t>(bytes, kAtChunk);
  header.layout = get<std::uint64_t>(bytes, kAtLayout);
  header.sequence = get<std::uint64_t>(bytes, kAtSequence);
  header.numel = get<std::uint64_t>(bytes, kAtNumel);
  header.payload_bytes = get<std::uint64_t>(bytes, kAtPayloadBytes);
  header.payload_crc32c = get<std::uint32_t>(bytes, kAtPayloadCrc);
  header.blamed_rank = get<std::int32_t>(bytes, kAtBlamed);
  return header;
}

void verify_frame(const FrameHeader& found, const FrameHeader& expected,
                  std::span<const std::byte> payload) {
  const std::string from = concat(" of rank ", found.sender);
  expect("the sender", found.sender, expected.sender, from);
  expect("the sequence number", found.sequence, expected.sequence, from);
  expect("the layout hash", found.layout, expected.layout, from);
  expect("the chunk", found.chunk, expected.chunk, from);
  expect("the codec", found.codec_id, expected.codec_id, from);
  expect("the dtype", found.dtype, expected.dtype, from);
  expect("the number of elements", found.numel, expected.numel, from);
  expect("the payload's size", found.payload_bytes, expected.payload_bytes, from);
  expect("the number of payload bytes that arrived", static_cast<std::uint64_t>(payload.size()),
         found.payload_bytes, from);
  expect("the payload's checksum", crc32c(payload), found.payload_crc32c, from);
}

}  // namespace thinwire
