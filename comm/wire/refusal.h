// Frames that a rank could not accept, and how all ranks come to know of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "thinwire/common/error.h"

namespace c10d {
class ProcessGroup;
}

namespace thinwire::comm {

// The CRC-32C of something that all ranks must have bit for bit.
struct ReplicaChecksum {
  std::string subject;
  std::uint32_t crc32c = 0;
};

// The first frame of an exchange that this rank refused. A rank that refuses a frame decodes
// nothing of it but goes on through all collectives of the exchange, so that no other rank waits
// for it; when all have finished, agree() makes every rank throw.
class Refusal {
 public:
  bool any() const { return kind_ != Kind::kNone; }

  // A frame of `sender` (a rank of the group) did not fit. Only the first one is kept.
  void note(int sender, const FrameError& error);
  // A frame of `sender` said that it refused one of `blamed`: it will tell why.
  void note_second_hand(int sender, int blamed);

  // Takes over what `other` noted, of `subject`, unless this one has noted more.
  void add(const Refusal& other, const std::string& subject);

  // Collective over the whole group. Throws FrameError, with one text on all ranks, if any rank
  // refused a frame: the text of the lowest rank that did. Else returns, and forgets nothing.
  // `checksums`, equally many on all ranks, must be equal on all of them, else InternalError naming
  // the first that is not: replicas differ. One all_reduce of 8 bytes, or 24 with checksums,
  // however many ranks there are. Returns the bytes that this rank sent.
  std::size_t agree(c10d::ProcessGroup& group, std::uint64_t sequence, const std::string& subject,
                    std::span<const ReplicaChecksum> checksums = {}) const;

 private:
  enum class Kind : std::int64_t { kNone = 0, kSecondHand = 1, kFirstHand = 2 };
  Kind kind_ = Kind::kNone;
  std::string text_;
};

}  // namespace thinwire::comm
