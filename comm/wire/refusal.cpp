#include "thinwire/comm/wire/refusal.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "thinwire/comm/wire/peers.h"
#include "thinwire/common/crc32c.h"

namespace thinwire::comm {
namespace {

// Room for the text of an error, in words of 8 bytes; longer ones are cut.
constexpr std::size_t kTextWords = 64;

}  // namespace

void Refusal::note(int sender, const FrameError& error) {
  if (kind_ == Kind::kFirstHand) return;
  kind_ = Kind::kFirstHand;
  text_ = concat("the frame of rank ", sender, " was refused: ", error.what());
}

void Refusal::note_second_hand(int sender, int blamed) {
  if (any()) return;
  kind_ = Kind::kSecondHand;
  text_ = concat("rank ", sender, " refused the frame of rank ", blamed);
}

void Refusal::add(const Refusal& other, const std::string& subject) {
  if (other.kind_ <= kind_) return;
  kind_ = other.kind_;
  text_ = concat(subject, ": ", other.text_);
}

std::size_t Refusal::agree(c10d::ProcessGroup& group, std::uint64_t sequence,
                           const std::string& subject,
                           std::span<const ReplicaChecksum> checksums) const {
  constexpr const char* kOperation = "agreement on the result";
  const Peers peers(group);
  // All of them in one number; which one differs is asked for where they do.
  std::vector<std::int64_t> numbers;
  for (const ReplicaChecksum& checksum : checksums) numbers.push_back(checksum.crc32c);
  const std::array<std::int64_t, 2> mine = {static_cast<std::int64_t>(kind_),
                                            crc32c(std::as_bytes(std::span(numbers)))};
  const auto all = peers.all_gather(mine, kOperation, sequence);
  int refuser = -1;
  auto worst = static_cast<std::int64_t>(Kind::kNone);
  bool equal = true;
  for (int r = 0; r < peers.size(); ++r) {
    const auto kind = all[2 * static_cast<std::size_t>(r)];
    if (kind > worst) {
      worst = kind;
      refuser = r;
    }
    equal = equal && all[2 * static_cast<std::size_t>(r) + 1] == mine[1];
  }
  if (refuser >= 0) {
    std::array<std::int64_t, kTextWords> text{};
    std::memcpy(text.data(), text_.data(), std::min(text_.size(), sizeof text - 1));
    const auto texts = peers.all_gather(text, kOperation, sequence);
    const auto* first = texts.data() + kTextWords * static_cast<std::size_t>(refuser);
    std::array<char, sizeof text> chars;
    std::memcpy(chars.data(), first, sizeof text);
    chars.back() = 0;
    throw FrameError(
        concat(subject, ", exchange #", sequence, ": rank ", refuser, " reports: ", chars.data()));
  }
  if (equal) return sizeof mine * static_cast<std::size_t>(peers.size() - 1);
  const auto everyones = peers.all_gather(numbers, kOperation, sequence);
  std::size_t different = numbers.size() - 1;
  for (std::size_t i = 0; i < everyones.size(); ++i) {
    const std::size_t part = i % numbers.size();
    if (everyones[i] != everyones[part]) different = std::min(different, part);
  }
  throw InternalError(concat(subject, ", ", checksums[different].subject,
                             ": the averaged gradients are not bit-equal on all ranks; this "
                             "rank's CRC-32C is ",
                             checksums[different].crc32c));
}

}  // namespace thinwire::comm
