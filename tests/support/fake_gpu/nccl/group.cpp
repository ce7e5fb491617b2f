#include "thinwire/tests/support/fake_gpu/nccl/group.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "thinwire/tests/support/fake_gpu/host_sync.h"

namespace thinwire::fake_gpu {
namespace {

thread_local int depth = 0;

std::vector<Operation>& waiting_operations() {
  static thread_local std::vector<Operation> all;
  return all;
}

// The transfers of one direction. Those with one peer happen one after the other.
class Transfers {
 public:
  void add(const std::vector<Transfer>& more) {
    for (const Transfer& one : more) by_peer_[static_cast<std::size_t>(one.peer)].push_back(one);
  }

  // Moves what can be moved now by move(peer, at, bytes), which returns how much it was.
  template <typename Move>
  bool advance(const Move& move) {
    bool moved = false;
    for (int peer = 0; peer < kMostRanks; ++peer) {
      auto& left = by_peer_[static_cast<std::size_t>(peer)];
      while (!left.empty()) {
        Transfer& next = left.front();
        const std::size_t count = next.bytes == 0 ? 0 : move(peer, next.at, next.bytes);
        moved |= count > 0;
        next.at += count;
        next.bytes -= count;
        if (next.bytes > 0) break;
        left.erase(left.begin());
      }
    }
    return moved;
  }

  bool done() const {
    return std::ranges::all_of(by_peer_, [](const auto& left) { return left.empty(); });
  }

 private:
  std::array<std::vector<Transfer>, kMostRanks> by_peer_;
};

void run(ncclComm& comm, const std::vector<Operation>& operations) {
  Transfers sends, receives;
  for (const Operation& one : operations) {
    if (one.begin) one.begin();
    sends.add(one.sends);
    receives.add(one.receives);
  }
  for (int idle = 0; !(sends.done() && receives.done());) {
    if (comm.aborted) return;
    bool moved = sends.advance([&](int peer, std::byte* at, std::size_t bytes) {
      return comm.shared->pipes[comm.rank][peer].write(at, bytes);
    });
    moved |= receives.advance([&](int peer, std::byte* at, std::size_t bytes) {
      return comm.shared->pipes[peer][comm.rank].read(at, bytes);
    });
    idle = moved ? 0 : idle + 1;
    if (idle > 20) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  for (const Operation& one : operations)
    if (one.end) one.end();
}

// What a group has of one communicator and stream is one task, as it is one kernel of NCCL.
void queue_all() {
  std::vector<Operation> left = std::exchange(waiting_operations(), {});
  while (!left.empty()) {
    ncclComm* const comm = left.front().comm;
    Stream* const stream = left.front().stream;
    const auto others = std::stable_partition(left.begin(), left.end(), [&](const Operation& one) {
      return one.comm == comm && one.stream == stream;
    });
    auto together = std::make_shared<std::vector<Operation>>(std::make_move_iterator(left.begin()),
                                                             std::make_move_iterator(others));
    left.erase(left.begin(), others);
    Work work{together->front().name, [comm, together] { run(*comm, *together); }};
    for (const Operation& one : *together)
      work.accesses.insert(work.accesses.end(), one.accesses.begin(), one.accesses.end());
    enqueue(stream, std::move(work));
  }
}

}  // namespace

ncclResult_t add_operation(Operation operation) {
  ++counting().collectives;
  waiting_operations().push_back(std::move(operation));
  if (depth == 0) queue_all();
  return ncclSuccess;
}

}  // namespace thinwire::fake_gpu

extern "C" {

ncclResult_t ncclGroupStart() {
  ++thinwire::fake_gpu::depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--thinwire::fake_gpu::depth == 0) thinwire::fake_gpu::queue_all();
  return ncclSuccess;
}
}
