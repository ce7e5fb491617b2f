// Failures of other ranks while this one's device waits for them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/failure/peer_watch.h"

namespace thinwire::comm {

class PostedFailures;

// Note [Failures while a device waits]
// A collective of NCCL is queued, and the host goes on. Where another rank dies, hangs or fails
// before it queues its own, this rank's device waits in it for ever, and so does the host where it
// next waits for the device: where the program asks for the loss. No exception reaches it there,
// and c10d's own watchdog, which notices after the timeout, ends the process. So a thread watches
// what is queued. When it takes long, and a rank has posted a failure or closed its connection, or
// the timeout is nearly over, it answers the failure as a collective on the host would
// (raise_collective_failure()) and aborts the communicators, which frees the device and whoever
// waits for it. The host gets the named error at its next check().
//
// What the device has computed since, parameters included, is worth nothing then.
class DeviceWatch {
 public:
  using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

  // Of the work that `group` makes on `device`, over a backend that orders streams. `original`: the
  // group that it duplicates, or null: its communicators are aborted as well, for the program's own
  // collectives wait behind ours. `group` lives longer. Starts two threads.
  DeviceWatch(c10d::ProcessGroup& group, Group original, c10::Device device);
  // Waits until all that was queued is finished, or has failed, so that this rank's connections
  // close after its last collective; not on the way of an exception.
  ~DeviceWatch();
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

  // The work on the current stream up to here is that of an operation with other ranks, which
  // messages call by this name. Not thread-safe.
  void queued(std::string operation, std::uint64_t sequence);

  // Throws the failure of the group, if there was one: CommError, or the named error of another
  // rank. Call it before anything is queued, and after every wait for the device. Thread-safe.
  void check();

 private:
  using Clock = std::chrono::steady_clock;
  struct Item {
    std::shared_ptr<c10::Event> finished;
    std::string operation;
    std::uint64_t sequence;
    Clock::time_point since;
  };

  void watch();
  void forget_finished();
  std::exception_ptr sign_of_failure(const Item& oldest);
  void fail(std::unique_lock<std::mutex>& lock, const Item& oldest,
            const std::exception_ptr& cause);
  void free_device();

  c10d::ProcessGroup& group_;
  const Group original_;
  const c10::Device device_;
  const Clock::duration limit_;
  const std::uint64_t answered_before_;
  const int exceptions_ = std::uncaught_exceptions();
  PeerWatch peer_;
  std::unique_ptr<PostedFailures> posted_;    // of the thread alone
  std::optional<Clock::time_point> noticed_;  // of the thread alone: that something is wrong

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;  // in the order of the stream
  std::vector<std::shared_ptr<c10::Event>> free_events_;
  bool answering_ = false, told_ = false, stopping_ = false;
  std::exception_ptr failure_;
  std::thread thread_;  // last: it uses all of these
};

}  // namespace thinwire::comm
