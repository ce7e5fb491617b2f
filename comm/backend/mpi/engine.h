// Numbers the operations of one MPI backend and starts them.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <c10/core/ScalarType.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "thinwire/comm/backend/mpi/runtime.h"
#include "thinwire/comm/backend/mpi/work.h"

namespace thinwire::comm::mpi {

// What the ranks must agree on, besides the sizes, which the messages tell. It is part of the tag
// of every message: a rank that does something else is found out, rather than misunderstood.
struct Signature {
  c10d::OpType type;
  at::ScalarType dtype = at::kByte;
  int reduction = 0;
};

// Tags below first_collective() are the program's own, for send and recv. From there on
//   tag = first_collective() + (sequence mod sequences) * kSignatures + signature
class TagLayout {
 public:
  explicit TagLayout(int largest_tag);

  int first_collective() const { return half_; }
  int tag(std::uint64_t sequence, const Signature& signature) const;
  // What a message with tag `theirs` says against an operation with tag `ours`: a text where both
  // have one sequence number and different signatures, else empty.
  std::string contradiction(int ours, int theirs) const;

 private:
  int half_;
  int signatures_;  // 1 where MPI allows too few tags to carry any
};

// Thread-safe; but which operation gets which number is decided by the order of the calls, and
// that has to be the same on every rank.
class Engine {
 public:
  Engine(int rank, std::shared_ptr<Communicator> communicator, std::size_t max_message_bytes);

  // Starts the stages as the next collective. `staging` holds their memory.
  c10::intrusive_ptr<c10d::Work> collective(const Signature& signature,
                                            std::chrono::milliseconds timeout, Staging staging,
                                            std::vector<Stage> stages);
  // One message to or from `peer`; kAnyRank receives from any.
  c10::intrusive_ptr<c10d::Work> message(c10d::OpType type, Message::Direction direction, int peer,
                                         int tag, Block block, std::chrono::milliseconds timeout,
                                         Staging staging);

  // Between the two calls every operation is started as usual; the second returns one Work for all.
  void start_coalescing();
  c10::intrusive_ptr<c10d::Work> end_coalescing();

  std::uint64_t sequence() const;
  const std::shared_ptr<Communicator>& communicator() const { return communicator_; }

 private:
  c10::intrusive_ptr<c10d::Work> start(std::unique_ptr<Operation> operation, c10d::OpType type,
                                       std::chrono::milliseconds timeout, Staging staging);

  int rank_;
  std::shared_ptr<Communicator> communicator_;
  std::size_t max_message_bytes_;
  TagLayout tags_;
  // Held while an operation takes its number and its place in the queue.
  mutable std::mutex mutex_;
  std::uint64_t collectives_ = 0;
  std::uint64_t messages_ = 0;
  bool coalescing_ = false;
  std::vector<c10::intrusive_ptr<c10d::Work>> coalesced_;
};

}  // namespace thinwire::comm::mpi
