// Frames whose sizes only their senders know: the sizes travel first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/reduction_context.h"
#include "thinwire/comm/wire/frame.h"

namespace thinwire::comm {

// What every peer sent to this one.
struct ReceivedFrames {
  std::optional<Messages> memory;
  // By peer: the bytes after the header of a frame that fits. Empty for this rank, and for a peer
  // whose frame was refused.
  std::vector<std::span<const std::byte>> payloads;
  bool complete = true;  // no frame was refused
  std::size_t sent = 0;  // bytes that this rank handed to the network
};

// A message with room for a header in front of its payload.
class FrameBuffer {
 public:
  // Makes room for a payload of up to `most` bytes and returns it.
  std::span<std::byte> payload(std::size_t most);
  // Says how much of the room was used, and writes the header.
  void finish(const FrameHeader& header, std::size_t payload_bytes);
  std::span<const std::byte> frame() const { return std::span(bytes_).first(size_); }
  std::span<const std::byte> payload() const { return frame().subspan(kFrameHeaderBytes); }

 private:
  std::vector<std::byte> bytes_;
  std::size_t size_ = 0;
};

// What the frame of `peer` in an exchange of `numel` elements must say but for its size; `part`
// tells frames of one exchange apart.
FrameHeader header_of(const ReductionContext& context, std::uint64_t numel, int peer,
                      std::uint32_t part);

// Sends frames[p] to peer p, or frames[0] to all if there is only one, and checks what comes
// against `expected` of its sender. `most` bounds the size of a frame that may come; a rank that
// announces more makes all ranks throw FrameError. Frames that do not fit, or that say their
// sender refused one, are noted in exchange.refusal. Collective.
ReceivedFrames swap_frames(const ReductionContext& context, std::span<const FrameBuffer> frames,
                           std::span<const FrameHeader> expected, std::size_t most,
                           const char* operation);

}  // namespace thinwire::comm
