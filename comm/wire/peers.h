// The ranks that make an exchange: those of a process group, or some of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/wire/arena.h"

namespace thinwire::comm {

// Bytes to send to, or received from, every peer: one tensor and each peer's place in it.
class Messages {
 public:
  // sizes[p] bytes of peer p. They have no memory before place().
  explicit Messages(std::vector<std::int64_t> sizes);

  // Takes memory, which is valid until the arena is reset.
  void place(Arena& arena);
  // Holds the arena's memory no longer.
  void release() { tensor_ = at::Tensor(); }

  std::span<std::byte> of(int peer);
  std::size_t bytes() const { return total_; }

 private:
  friend class Peers;
  std::vector<std::int64_t> sizes_;
  std::vector<std::size_t> offsets_;
  std::size_t total_ = 0;
  at::Tensor tensor_;
};

// Small numbers on their way, see Peers.
class PendingNumbers {
 public:
  // Throws CommError naming `operation` and `sequence`. Call it once.
  std::vector<std::int64_t> wait(const char* operation, std::uint64_t sequence);
  std::size_t sent_bytes() const { return sent_bytes_; }

 private:
  friend class Peers;
  c10d::ProcessGroup* group_ = nullptr;
  c10::intrusive_ptr<c10d::Work> work_;
  at::Tensor sent_, received_;
  std::vector<int> rows_;  // of `received_` that matter, by peer
  std::size_t sent_bytes_ = 0;
};

// Peers are numbered from 0 in the order of their ranks in the group. An exchange among some of the
// ranks is a collective of the whole group in which the others bring nothing: no backend needs a
// group of its own for it, and a failure anywhere is noticed by all. So every rank of the group
// makes its exchanges at the same time, each among its own peers, and all make equally many.
//
// Value type; does not own the group, which must outlive it. Not thread-safe, as the group.
class Peers {
 public:
  explicit Peers(c10d::ProcessGroup& group);
  // `members` are ranks of the group in ascending order, this rank among them.
  Peers(c10d::ProcessGroup& group, std::vector<int> members);

  int rank() const { return rank_; }  // of this process among the peers
  int size() const { return static_cast<int>(members_.size()); }
  int group_rank(int peer) const { return members_[static_cast<std::size_t>(peer)]; }
  c10d::ProcessGroup& group() const { return *group_; }
  // The group has no other rank, so nothing needs to be sent.
  bool alone() const { return group_->getSize() == 1; }
  // The peers are all ranks of the group.
  bool whole_group() const { return size() == group_->getSize(); }

  // Starts to send each peer its message; both must live until the work is done. Messages of
  // this rank to itself must be empty.
  c10::intrusive_ptr<c10d::Work> all_to_all(Messages& received, Messages& sent) const;

  // Starts to gather `numbers` of every peer, one peer after another; equally many on every rank of
  // the group.
  PendingNumbers start_all_gather(std::span<const std::int64_t> numbers) const;
  // Starts to send numbers[p] to peer p, and to receive one of each.
  PendingNumbers start_all_to_all(std::span<const std::int64_t> numbers) const;

  // start_all_gather(), waited for. A failure to start it is told to the other ranks, too.
  std::vector<std::int64_t> all_gather(std::span<const std::int64_t> numbers, const char* operation,
                                       std::uint64_t sequence) const;

 private:
  std::vector<std::int64_t> by_group_rank(const std::vector<std::int64_t>& by_peer) const;
  PendingNumbers pending(std::span<const std::int64_t> numbers) const;

  c10d::ProcessGroup* group_;
  std::vector<int> members_;
  int rank_ = 0;
};

}  // namespace thinwire::comm
