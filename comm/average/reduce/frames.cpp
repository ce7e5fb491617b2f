#include "thinwire/comm/average/reduce/frames.h"

#include <algorithm>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {

std::span<std::byte> FrameBuffer::payload(std::size_t most) {
  if (bytes_.size() < kFrameHeaderBytes + most) bytes_.resize(kFrameHeaderBytes + most);
  return std::span(bytes_).subspan(kFrameHeaderBytes, most);
}

void FrameBuffer::finish(const FrameHeader& header, std::size_t payload_bytes) {
  size_ = kFrameHeaderBytes + payload_bytes;
  const std::span<std::byte> whole = std::span(bytes_).first(size_);
  write_frame_header(header, whole.subspan(kFrameHeaderBytes), whole);
}

FrameHeader header_of(const ReductionContext& context, std::uint64_t numel, int peer,
                      std::uint32_t part) {
  return {.codec_id = kMixedCodecs,
          .sender = static_cast<std::uint32_t>(context.peers->group_rank(peer)),
          .chunk = part,
          .layout = context.layout,
          .sequence = context.sequence,
          .numel = numel};
}

ReceivedFrames swap_frames(const ReductionContext& context, std::span<const FrameBuffer> frames,
                           std::span<const FrameHeader> expected, std::size_t most,
                           const char* operation) {
  const Peers& peers = *context.peers;
  const auto size = static_cast<std::size_t>(peers.size());
  const auto self = static_cast<std::size_t>(peers.rank());
  ReceivedFrames received;
  received.payloads.resize(size);
  if (peers.alone()) return received;

  Timeline::Span span(context.timeline, context.track, "EXCHANGE");
  // Everyone learns all sizes, so that an impossible one stops all ranks at the same place. The
  // table has a row for every rank: its frames for each peer, or its one frame.
  const std::size_t columns = frames.size();
  THINWIRE_ASSERT(columns == 1 || columns == size);
  std::vector<std::int64_t> out(size), in(size);
  std::vector<std::int64_t> own;
  for (const FrameBuffer& buffer : frames) {
    own.push_back(static_cast<std::int64_t>(buffer.frame().size()));
  }
  const auto table = peers.all_gather(own, operation, context.sequence);
  for (std::size_t p = 0; p < size; ++p) {
    for (std::size_t column = 0; column < columns; ++column) {
      const auto bytes = table[p * columns + column];
      if (bytes >= 0 && bytes <= static_cast<std::int64_t>(most)) continue;
      throw FrameError(concat(operation, " #", context.sequence, ": rank ",
                              peers.group_rank(static_cast<int>(p)), " announces ", bytes,
                              " bytes, these layers need at most ", most));
    }
    if (p == self) continue;
    out[p] = own[columns == 1 ? 0 : p];
    in[p] = table[p * columns + (columns == 1 ? 0 : self)];
  }
  Messages sent(out);
  received.memory.emplace(in);
  for (std::size_t p = 0; p < size; ++p) {
    if (p == self) continue;
    std::ranges::copy(frames[columns == 1 ? 0 : p].frame(), sent.of(static_cast<int>(p)).begin());
  }
  wait(peers.group(), peers.all_to_all(*received.memory, sent), operation, context.sequence);
  received.sent =
      sent.bytes() + own.size() * sizeof(std::int64_t) * static_cast<std::size_t>(size - 1);

  for (std::size_t p = 0; p < size; ++p) {
    if (p == self) continue;
    const int sender = peers.group_rank(static_cast<int>(p));
    const std::span<const std::byte> frame = received.memory->of(static_cast<int>(p));
    try {
      const FrameHeader found = read_frame_header(frame);
      const auto payload = frame.subspan(kFrameHeaderBytes);
      FrameHeader wanted = expected[p];
      wanted.payload_bytes = payload.size();
      verify_frame(found, wanted, payload);
      if (found.status == FrameHeader::Status::kOk) {
        received.payloads[p] = payload;
        continue;
      }
      context.refusal->note_second_hand(sender, found.blamed_rank);
    } catch (const FrameError& error) {
      context.refusal->note(sender, error);
    }
    received.complete = false;
  }
  return received;
}

}  // namespace thinwire::comm
