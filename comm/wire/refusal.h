// Frames that a rank could not accept, and how all ranks come to know of them.
#pragma once

#include <cstdint>
#include <string>

#include "thinwire/common/error.h"

namespace c10d {
class ProcessGroup;
}

namespace thinwire::comm {

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

  // Collective over the whole group. Throws FrameError, with one text on all ranks, if any rank
  // refused a frame: the text of the lowest rank that did. Else returns, and forgets nothing.
  // `checksum` must be equal on all ranks, else InternalError naming `subject`: replicas differ.
  void agree(c10d::ProcessGroup& group, std::uint64_t sequence, std::uint32_t checksum,
             const std::string& subject) const;

 private:
  enum class Kind : std::int64_t { kNone = 0, kSecondHand = 1, kFirstHand = 2 };
  Kind kind_ = Kind::kNone;
  std::string text_;
};

}  // namespace thinwire::comm
