// Noticing that a rank's process has ended while this one receives nothing from it.
#pragma once

#include <atomic>
#include <thread>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// Waits, on a thread of its own, for a message that the next rank never sends: over Gloo it fails
// as soon as the connection ends. Other backends do not tell, and over these nobody is ever gone.
// The group lives longer.
class PeerWatch {
 public:
  explicit PeerWatch(c10d::ProcessGroup& group);
  ~PeerWatch();
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  // Whether the next rank has closed its connections: because it died, or is done with the group.
  // Thread-safe.
  bool is_gone() const noexcept { return is_gone_; }

 private:
  at::Tensor word_;
  c10::intrusive_ptr<c10d::Work> work_;
  std::atomic<bool> is_gone_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace thinwire::comm
