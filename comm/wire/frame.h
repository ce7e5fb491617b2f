// The envelope of payloads that cross the network: what it is, from whom, for which exchange, and a
// checksum. A receiver compares it with what it expects before it decodes a byte. docs/format.md
// lists what travels without one, and why.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace thinwire {

// Decoded form of the header; on the wire it is kFrameHeaderBytes little-endian bytes, see
// docs/format.md.
struct FrameHeader {
  // kOk; kNonFinite: a payload of the sender holds NaN or infinity, so that receivers leave alone
  // what they carry over; else why the sender could not send one: a rank that refuses what it got
  // tells the others in the frames that it still owes them, so that all raise the same error.
  enum class Status : std::uint8_t { kOk = 0, kPeerFrameInvalid = 1, kNonFinite = 2, kFailed = 3 };

  std::uint16_t codec_id = 0;  // CodecFacts::id, or kMixedCodecs
  std::uint8_t dtype = 0;      // DType of the tensors, as a number
  Status status = Status::kOk;
  std::uint32_t sender = 0;    // rank in the group
  std::uint32_t chunk = 0;     // which part of the exchange
  std::uint64_t layout = 0;    // hash of (specs, dtypes, numels) of everything in the exchange
  std::uint64_t sequence = 0;  // number of the exchange on this group
  std::uint64_t numel = 0;     // elements in the payload
  std::uint64_t payload_bytes = 0;
  std::uint32_t payload_crc32c = 0;
  std::int32_t blamed_rank = -1;  // with a status other than kOk: who is at fault

  bool operator==(const FrameHeader&) const = default;
};

// Whether a frame of this status has a payload to decode.
inline bool holds_payload(FrameHeader::Status status) {
  return status == FrameHeader::Status::kOk || status == FrameHeader::Status::kNonFinite;
}

inline constexpr std::uint16_t kMixedCodecs = 0xFFFF;
inline constexpr std::size_t kFrameHeaderBytes = 64;

// Writes the header for `payload` to the first kFrameHeaderBytes of `out`, filling in the payload's
// size and checksum.
void write_frame_header(FrameHeader header, std::span<const std::byte> payload,
                        std::span<std::byte> out);

// Reads and checks magic, version and the header's own checksum. Throws FrameError that says which
// field is wrong, with the value found and the one expected. `payload_bytes` is not yet trusted.
FrameHeader read_frame_header(std::span<const std::byte> bytes);

// Compares a received header with the expected one, field by field (status, blamed_rank and the
// payload's checksum aside), then the payload's size and checksum. Throws FrameError naming the
// sender, the field, the value found and the one expected. `payload` are the bytes after the
// header.
void verify_frame(const FrameHeader& found, const FrameHeader& expected,
                  std::span<const std::byte> payload);

}  // namespace thinwire
