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

// A message with room for a header in front of its payload.
class FrameBuffer {
 public:
  // Takes room for a payload of up to `most` bytes from the arena and returns it.
  std::span<std::byte> payload(Arena& arena, std::size_t most);
  // Says how much of the room was used, and writes the header.
  void finish(const FrameHeader& header, std::size_t payload_bytes);
  std::span<std::byte> frame() const { return memory().first(size_); }
  std::span<const std::byte> payload() const { return frame().subspan(kFrameHeaderBytes); }

 private:
  friend class FrameSwap;
  std::span<std::byte> memory() const;
  at::Tensor memory_;
  std::size_t size_ = 0;
};

// What every peer sent to this one.
struct ReceivedFrames {
  // By peer: the bytes after the header of a frame that fits. Empty for this rank, and for a peer
  // whose frame was refused.
  std::vector<std::span<const std::byte>> payloads;
  bool complete = true;  // no frame was refused
  bool finite = true;    // no sender said that its values are not finite
  std::size_t sent = 0;  // bytes that this rank handed to the network
};

// What the frame of `peer` in an exchange of `numel` elements must say but for its size; `part`
// tells frames of one exchange apart.
FrameHeader header_of(const ReductionContext& context, std::uint64_t numel, int peer,
                      std::uint32_t part);

// Sends frames[p] to peer p, or frames[0] to all if there is only one. In three calls, so that what
// travels can be left alone for a while. All ranks make them in the same order; the frames live as
// long as the object, which serves one exchange after another.
//
// One frame for all goes by an all_gather, padded to the largest, where the frames are of about the
// same size and the peers are the whole group; else each peer gets a copy of its own.
class FrameSwap {
 public:
  // Starts to tell the peers the sizes.
  void announce(const ReductionContext& context, std::span<FrameBuffer> frames,
                const char* operation);
  // Waits for the sizes and starts to send the frames. `most` bounds the size of a frame that may
  // come: FrameError where a peer announces more, naming it; every rank learns of it by the guard
  // around.
  void send(std::size_t most);
  // Waits for the frames and checks each against `expected` of its sender. Those that do not fit,
  // or that say their sender refused one, are noted in the context's refusal.
  ReceivedFrames receive(std::span<const FrameHeader> expected);
  // Holds the arena's memory no longer, the frames' neither.
  void release();

 private:
  void send_copies();
  void send_slots(std::size_t slot);
  std::span<const std::byte> frame_of(std::size_t peer);

  ReductionContext context_;
  std::span<FrameBuffer> frames_;
  const char* operation_ = "";
  PendingNumbers sizes_;
  std::vector<std::int64_t> incoming_;  // sizes by peer
  std::optional<Messages> copies_out_, copies_in_;
  at::Tensor slots_out_, slots_in_;
  c10::intrusive_ptr<c10d::Work> work_;
  std::size_t sent_ = 0;
};

// All of it in one go, for callers with nothing to do meanwhile. What a rank meets alone becomes
// known to the others. Collective; throws CommError naming `operation`.
ReceivedFrames swap_frames(const ReductionContext& context, std::span<FrameBuffer> frames,
                           std::span<const FrameHeader> expected, std::size_t most,
                           const char* operation);

}  // namespace thinwire::comm
