#include "thinwire/comm/average/reduce/frames.h"

#include <algorithm>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// An all_gather of padded frames may send so many times the bytes of the frames.
constexpr double kMostPadding = 1.25;

// A size is told with 16 bits of its checksum: ranks that disagree about a size would wait for each
// other, so a damaged one must not be believed.
constexpr int kCheckBits = 16;

std::int64_t sealed(std::size_t size) {
  const auto value = static_cast<std::uint64_t>(size) << kCheckBits;
  const auto check = crc32c(std::as_bytes(std::span(&value, 1))) & ((1u << kCheckBits) - 1);
  return static_cast<std::int64_t>(value | check);
}

}  // namespace

std::span<std::byte> FrameBuffer::memory() const {
  return {static_cast<std::byte*>(memory_.mutable_data_ptr()), memory_.nbytes()};
}

std::span<std::byte> FrameBuffer::payload(Arena& arena, std::size_t most) {
  memory_ = arena.tensor(kFrameHeaderBytes + most);
  return memory().subspan(kFrameHeaderBytes);
}

void FrameBuffer::finish(const FrameHeader& header, std::size_t payload_bytes) {
  size_ = kFrameHeaderBytes + payload_bytes;
  write_frame_header(header, frame().subspan(kFrameHeaderBytes), frame());
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

void FrameSwap::announce(const ReductionContext& context, std::span<FrameBuffer> frames,
                         const char* operation) {
  context_ = context;
  frames_ = frames;
  operation_ = operation;
  sent_ = 0;
  const Peers& peers = *context.peers;
  THINWIRE_ASSERT(frames.size() == 1 || frames.size() == static_cast<std::size_t>(peers.size()));
  if (peers.alone()) return;
  std::vector<std::int64_t> sizes;
  for (const FrameBuffer& buffer : frames) {
    sizes.push_back(sealed(buffer.frame().size()));
  }
  sizes_ = frames.size() == 1 ? peers.start_all_gather(sizes) : peers.start_all_to_all(sizes);
  sent_ = sizes_.sent_bytes();
}

void FrameSwap::send(std::size_t most) {
  const Peers& peers = *context_.peers;
  if (peers.alone()) return;
  {
    PhaseSpan span(context_, Phase::kExchange);
    incoming_ = sizes_.wait(operation_, context_.sequence);
  }
  std::int64_t largest = 0, total = 0;
  for (std::size_t p = 0; p < incoming_.size(); ++p) {
    const std::int64_t announced = incoming_[p];
    incoming_[p] = announced >> kCheckBits;
    const int sender = peers.group_rank(static_cast<int>(p));
    if (incoming_[p] < 0 || sealed(static_cast<std::size_t>(incoming_[p])) != announced) {
      throw FrameError(concat(operation_, " #", context_.sequence, ": the size that rank ", sender,
                              " announced to rank ", peers.group_rank(peers.rank()),
                              " arrived damaged"));
    }
    if (incoming_[p] > static_cast<std::int64_t>(most)) {
      throw FrameError(concat(operation_, " #", context_.sequence, ": rank ", sender, " announces ",
                              incoming_[p], " bytes, these layers need at most ", most));
    }
    largest = std::max(largest, incoming_[p]);
    total += incoming_[p];
  }
  // Decided by what all ranks know alike.
  const double padded = static_cast<double>(largest) * static_cast<double>(incoming_.size());
  if (frames_.size() == 1 && peers.whole_group() &&
      padded <= kMostPadding * static_cast<double>(total)) {
    send_slots(static_cast<std::size_t>(largest));
  } else {
    send_copies();
  }
}

void FrameSwap::send_slots(std::size_t slot) {
  Arena& arena = context_.workspace->arena;
  const auto ranks = static_cast<std::size_t>(context_.peers->size());
  FrameBuffer& own = frames_[0];
  const std::size_t size = own.frame().size();
  if (own.memory().size() < slot) {
    const at::Tensor larger = arena.tensor(slot);
    std::ranges::copy(own.frame(), static_cast<std::byte*>(larger.mutable_data_ptr()));
    own.memory_ = larger;
  }
  std::ranges::fill(own.memory().subspan(size, slot - size), std::byte{0});
  copies_in_.reset();
  slots_out_ = own.memory_.narrow(0, 0, static_cast<std::int64_t>(slot));
  slots_in_ = arena.tensor(slot * ranks);
  work_ = context_.peers->group()._allgather_base(slots_in_, slots_out_);
  sent_ += slot * (ranks - 1);
}

void FrameSwap::send_copies() {
  const Peers& peers = *context_.peers;
  const auto size = static_cast<std::size_t>(peers.size());
  const auto self = static_cast<std::size_t>(peers.rank());
  std::vector<std::int64_t> out(size), in(incoming_);
  const auto frame_for = [&](std::size_t p) {
    return frames_[frames_.size() == 1 ? 0 : p].frame();
  };
  for (std::size_t p = 0; p < size; ++p) {
    if (p != self) out[p] = static_cast<std::int64_t>(frame_for(p).size());
  }
  in[self] = 0;
  copies_out_.emplace(out);
  copies_in_.emplace(in);
  copies_out_->place(context_.workspace->arena);
  copies_in_->place(context_.workspace->arena);
  for (std::size_t p = 0; p < size; ++p) {
    if (p == self) continue;
    std::ranges::copy(frame_for(p), copies_out_->of(static_cast<int>(p)).begin());
  }
  work_ = peers.all_to_all(*copies_in_, *copies_out_);
  sent_ += copies_out_->bytes();
}

void FrameSwap::release() {
  for (FrameBuffer& buffer : frames_) buffer.memory_ = at::Tensor();
  copies_out_.reset();
  copies_in_.reset();
  slots_out_ = slots_in_ = at::Tensor();
  work_ = {};
}

std::span<const std::byte> FrameSwap::frame_of(std::size_t peer) {
  if (copies_in_) return copies_in_->of(static_cast<int>(peer));
  const auto slot = slots_out_.nbytes();
  const auto* first = static_cast<const std::byte*>(slots_in_.const_data_ptr()) + peer * slot;
  return {first, static_cast<std::size_t>(incoming_[peer])};
}

ReceivedFrames FrameSwap::receive(std::span<const FrameHeader> expected) {
  const Peers& peers = *context_.peers;
  const auto size = static_cast<std::size_t>(peers.size());
  ReceivedFrames received;
  received.sent = sent_;
  received.payloads.resize(size);
  if (peers.alone()) return received;
  {
    PhaseSpan span(context_, Phase::kExchange, static_cast<std::int64_t>(sent_));
    wait(peers.group(), work_, operation_, context_.sequence);
  }
  for (std::size_t p = 0; p < size; ++p) {
    if (p == static_cast<std::size_t>(peers.rank())) continue;
    const int sender = peers.group_rank(static_cast<int>(p));
    const std::span<const std::byte> frame = frame_of(p);
    try {
      const FrameHeader found = read_frame_header(frame);
      const auto payload = frame.subspan(kFrameHeaderBytes);
      FrameHeader wanted = expected[p];
      wanted.payload_bytes = payload.size();
      verify_frame(found, wanted, payload);
      if (holds_payload(found.status)) {
        received.payloads[p] = payload;
        received.finite = received.finite && found.status == FrameHeader::Status::kOk;
        continue;
      }
      context_.refusal->note_second_hand(sender, found.blamed_rank);
    } catch (const FrameError& error) {
      context_.refusal->note(sender, error);
    }
    received.complete = false;
  }
  return received;
}

ReceivedFrames swap_frames(const ReductionContext& context, std::span<FrameBuffer> frames,
                           std::span<const FrameHeader> expected, std::size_t most,
                           const char* operation) {
  return guard(context.peers->group(), operation, context.sequence, [&] {
    FrameSwap swap;
    swap.announce(context, frames, operation);
    swap.send(most);
    return swap.receive(expected);
  });
}

}  // namespace thinwire::comm
