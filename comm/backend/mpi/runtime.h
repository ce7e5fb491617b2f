// MPI's life in this process: one thread makes all calls of MPI, for every backend.
//
// Note [One MPI thread]
//
// MPI has no call that waits for any of several operations and gives up at a deadline, and makes
// progress only inside its own calls. So one progress thread posts all messages, tests them, and
// finishes the operations; programs need not enter MPI themselves. One call is made elsewhere: what
// makes a group of fewer ranks blocks in MPI, so it has a thread of its own for as long as it
// takes. For that, and for programs that do use MPI beside, MPI must support several threads. While
// something is pending it tests, and between two tests it spins for the first 20 us after the last
// event, then naps for a sixteenth of the time since that event, 20 us at least and 200 us at most.
// Naps add little to a latency and leave the cores to the ranks that compute. An event is a message
// that has finished, so messages are cut into parts (see kPart): while a long one moves, the thread
// must not nap as if nothing did.
//
// Note [Finished is not sent]
//
// When the last operation of a rank has finished, MPI may still owe its peers something: bytes of a
// short send that it copied, or the word that a long message was read, which lets the sender go on.
// Where such a notice found its queue full, MPI keeps it until a later call. So the thread keeps
// calling MPI while nothing is pending, after naps that grow in the same way, up to 10 ms.
//
// Note [No single copy]
//
// Between processes of one host Open MPI 4.1 lets the receiver read a long message straight from
// the sender's memory. It then reads as much as was sent, even where the receive is shorter, and
// overwrites what lies behind. Ranks that disagree on a size must get an error instead, so this is
// switched off where this runtime starts MPI: messages are copied twice, which still keeps up with
// Gloo. OMPI_MCA_btl_vader_single_copy_mechanism=cma in the environment switches it on, for
// programs whose sizes are known to agree (thinwire's own reductions compare them first).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace thinwire::comm::mpi {

using Clock = std::chrono::steady_clock;

inline constexpr int kAnyRank = -1;

// Longer messages travel in parts of this many bytes. Larger, and the naps slow a message down on
// transports that move bytes only inside MPI's calls; smaller, and the handshakes of MPI do.
inline constexpr std::size_t kPart = std::size_t{1} << 20;

// One message of a stage. Its bytes must stay in place until the operation has finished.
struct Message {
  enum class Direction { kSend, kReceive };

  Direction direction;
  int peer;  // kAnyRank: a receive from whoever sends first
  void* data;
  std::size_t bytes;
};

// Messages that travel at once, and what to compute when all of them have arrived.
struct Stage {
  std::vector<Message> messages;
  std::function<void()> then;
};

class Communicator;

// A collective as a list of stages. The stages of different operations overlap freely, so
// operations in flight at one time must have different tags.
struct Operation {
  std::string name;
  std::uint64_t sequence = 0;
  int tag = 0;
  std::chrono::milliseconds timeout{};
  std::size_t max_message_bytes = 0;
  std::vector<Stage> stages;
  std::vector<at::Tensor> keep_alive;
  // Both are called on the progress thread, one of them exactly once. `source` is the sender of
  // the last message received.
  std::function<void(int source)> succeeded;
  std::function<void(std::exception_ptr)> failed;
  // Looks at the tag of a message of a rank that this operation waits for, and says why that rank
  // is not doing the same thing; empty where it may well be. Optional.
  std::function<std::string(int tag)> contradiction;
};

// Starts `operation`; never blocks. On a broken communicator the operation fails at once. A
// failure breaks the communicator: its other operations fail too, for nobody can say any more
// which message of a peer belongs to which.
void submit(const std::shared_ptr<Communicator>& communicator,
            std::unique_ptr<Operation> operation);

// Fails everything pending on `communicator`, and everything to come. Never blocks.
void abort(const std::shared_ptr<Communicator>& communicator, const std::string& reason);
bool is_broken(const Communicator& communicator);

// A communicator of its own over the ranks of `parent`, or of MPI_COMM_WORLD where that is null.
// Starts MPI where the program has not. Collective; throws CommError at the timeout.
std::shared_ptr<Communicator> duplicate(const std::shared_ptr<Communicator>& parent,
                                        std::chrono::milliseconds timeout);

// A communicator over the ranks `ranks` of `parent`, this one among them, in this order. Collective
// over them; throws CommError at the timeout.
std::shared_ptr<Communicator> subset(const std::shared_ptr<Communicator>& parent,
                                     const std::vector<int>& ranks,
                                     std::chrono::milliseconds timeout);

// Largest tag of a message, at least 2^15 - 1.
int largest_tag(const Communicator& communicator);

struct World {
  int rank;
  int size;
};
// Starts MPI where the program has not. Throws InvalidArgument where the program started it with
// less support for threads than MPI_THREAD_MULTIPLE, or has ended it.
World world();

// Whether the caller is the progress thread, which must never wait for an operation.
bool on_progress_thread();

}  // namespace thinwire::comm::mpi
