#include "thinwire/torch_ext/checkpoint/stop_signal.h"

#include <ATen/ops/full.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <vector>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

constexpr std::array kStopSignals = {SIGUSR1, SIGTERM};
// How long a rank that was sent SIGTERM may be in one step: launchers kill after some 30 seconds.
constexpr unsigned kSecondsToEndAStep = 10;
constexpr const char* kAsking = "asking whether to stop";

std::atomic<bool> stop_was_asked{false};
std::atomic<bool> stop_signal_exists{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");
std::array<struct sigaction, kStopSignals.size()> former_actions;

// A handler: what it calls must be async-signal-safe.
void ask_to_stop(int signal) {
  stop_was_asked = true;
  if (signal == SIGTERM) alarm(kSecondsToEndAStep);
}

}  // namespace

StopSignal::StopSignal(c10::intrusive_ptr<c10d::ProcessGroup> group) : group_(std::move(group)) {
  check(group_ != nullptr, "a stop signal needs a process group, got a null pointer");
  check(!stop_signal_exists.exchange(true), "this process has a StopSignal already");
  stop_was_asked = false;
  struct sigaction action = {};
  action.sa_handler = ask_to_stop;
  action.sa_flags = SA_RESTART;  // reads and waits under way go on
  for (std::size_t i = 0; i < kStopSignals.size(); ++i)
    sigaction(kStopSignals[i], &action, &former_actions[i]);
}

StopSignal::~StopSignal() {
  for (std::size_t i = 0; i < kStopSignals.size(); ++i)
    sigaction(kStopSignals[i], &former_actions[i], nullptr);
  stop_signal_exists = false;
}

void StopSignal::begin_step() {
  THINWIRE_ASSERT(!asked_.defined());  // end_step() comes between two of them
  asked_ = at::full({1}, stop_was_asked ? 1 : 0, at::kLong);
  if (group_->getSize() == 1) return;
  std::vector<at::Tensor> tensors = {asked_};
  telling_ = comm::guard(*group_, kAsking, steps_, [&] { return group_->allreduce(tensors); });
}

bool StopSignal::end_step() {
  THINWIRE_ASSERT(asked_.defined());
  if (telling_ != nullptr) comm::wait(*group_, telling_, kAsking, steps_);
  ++steps_;
  telling_.reset();
  const bool stop = asked_.item<std::int64_t>() != 0;
  asked_.reset();
  // What was asked is answered: from here on the program has the time that saving takes.
  if (stop) alarm(0);
  return stop;
}

}  // namespace thinwire
