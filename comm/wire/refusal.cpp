#include "thinwire/comm/wire/refusal.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/wire/largest.h"
#include "thinwire/common/crc32c.h"

namespace thinwire::comm {
namespace {

// Room for the text of an error, in words of 8 bytes; longer ones are cut.
constexpr std::size_t kTextWords = 64;
// A refusal and the rank that has it in one number.
constexpr int kRankBits = 32;
constexpr std::int64_t kRankMask = (std::int64_t{1} << kRankBits) - 1;

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
  // The worst that any rank has, and of those that have it the lowest rank.
  const auto rank = static_cast<std::int64_t>(group.getRank());
  std::vector<std::int64_t> numbers = {
      any() ? static_cast<std::int64_t>(kind_) << kRankBits | (kRankMask - rank) : 0};
  // All checksums in one number; which one differs is asked for where they do. Numbers are equal
  // where the largest is the smallest.
  if (!checksums.empty()) {
    std::vector<std::uint32_t> all;
    for (const ReplicaChecksum& checksum : checksums) all.push_back(checksum.crc32c);
    const std::int64_t mine = crc32c(std::as_bytes(std::span(all)));
    numbers.insert(numbers.end(), {mine, -mine});
  }
  const std::size_t sent = take_largest(group, numbers, kOperation, sequence);
  if (numbers[0] != 0) {
    const std::int64_t refuser = kRankMask - (numbers[0] & kRankMask);
    // The others add nothing to its text: no word is less than theirs.
    std::array<std::int64_t, kTextWords> text;
    text.fill(rank == refuser ? 0 : std::numeric_limits<std::int64_t>::min());
    if (rank == refuser) {
      std::memcpy(text.data(), text_.data(), std::min(text_.size(), sizeof text - 1));
    }
    take_largest(group, text, kOperation, sequence);
    std::array<char, sizeof text> chars;
    std::memcpy(chars.data(), text.data(), sizeof text);
    chars.back() = 0;
    throw FrameError(
        concat(subject, ", exchange #", sequence, ": rank ", refuser, " reports: ", chars.data()));
  }
  if (checksums.empty() || numbers[1] == -numbers[2]) return sent;
  std::vector<std::int64_t> bounds;
  for (const ReplicaChecksum& checksum : checksums) {
    const std::int64_t crc = checksum.crc32c;
    bounds.insert(bounds.end(), {crc, -crc});
  }
  take_largest(group, bounds, kOperation, sequence);
  std::size_t different = 0;
  while (different + 1 < checksums.size() && bounds[2 * different] == -bounds[2 * different + 1]) {
    ++different;
  }
  throw InternalError(concat(subject, ", ", checksums[different].subject,
                             ": the averaged gradients are not bit-equal on all ranks; this "
                             "rank's CRC-32C is ",
                             checksums[different].crc32c));
}

}  // namespace thinwire::comm
