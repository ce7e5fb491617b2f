#include "thinwire/comm/failure/device_watch.h"

#include <algorithm>
#include <future>
#include <system_error>
#include <utility>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/comm/failure/roll_call.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/thread_apart.h"

namespace thinwire::comm {
namespace {

// What is still queued so long after something was noticed waits for a rank that is gone. Longer
// than what finishes a last collective takes, shorter than the others' patience in a roll call.
constexpr auto kGrace = std::chrono::milliseconds(400);

// c10d's watchdog gives every collective the same timeout from when it was queued, and then ends
// the process: ours comes first.
std::chrono::steady_clock::duration limit_of(std::chrono::milliseconds timeout) {
  return timeout - std::min<std::chrono::milliseconds>(timeout / 10, std::chrono::seconds(1));
}

}  // namespace

// Whether another rank has posted a failure. Asked on threads of its own: a store's client blocks
// for as long as the store's host is silent.
class PostedFailures {
 public:
  enum class Answer : std::uint8_t { kNone, kPosted, kNoStore };

  explicit PostedFailures(const c10d::ProcessGroup& group) : rank_(group.getRank()) {
    if (const auto board = DuplicateStore::board_of(group.getStore())) store_ = board->clone();
  }

  // As far as is known by now. kNoStore: its host has closed the connection.
  Answer ask() {
    if (!store_ || found_ != Answer::kNone) return found_;
    if (asked_.valid()) {
      if (asked_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return found_;
      try {
        found_ = asked_.get() ? Answer::kPosted : Answer::kNone;
      } catch (const std::exception& error) {
        log::debug("the store does not answer: ", error.what());
        found_ = Answer::kNoStore;
      }
      return ask();
    }
    asked_ = on_a_thread_apart(
        [store = store_, rank = rank_] { return failure_is_posted(store, rank); });
    return found_;
  }

 private:
  const int rank_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::future<bool> asked_;
  Answer found_ = Answer::kNone;
};

DeviceWatch::DeviceWatch(c10d::ProcessGroup& group, Group original, c10::Device device)
    : group_(group),
      original_(std::move(original)),
      device_(device),
      limit_(limit_of(group.getBackend(device.type())->getBackendOptions()->timeout)),
      answered_before_(failures_answered()),
      peer_(group),
      posted_(std::make_unique<PostedFailures>(group)),
      thread_([this] { watch(); }) {}

DeviceWatch::~DeviceWatch() {
  std::unique_lock lock(mutex_);
  if (!items_.empty() && std::uncaught_exceptions() == exceptions_) {
    const std::shared_ptr<c10::Event> last = items_.back().finished;
    lock.unlock();
    try {
      last->synchronize();
    } catch (const std::exception& error) {
      log::error("waiting for the last exchange on ", device_, ": ", error_text(error));
    }
    lock.lock();
  }
  changed_.wait(lock, [&] { return !answering_; });
  if (failure_ && !told_) {
    try {
      std::rethrow_exception(failure_);
    } catch (const std::exception& error) {
      log::error("what ", device_, " computed last is worth nothing: ", error_text(error));
    }
  }
  stopping_ = true;
  changed_.notify_all();
  lock.unlock();
  thread_.join();
}

void DeviceWatch::queued(std::string operation, std::uint64_t sequence) {
  std::shared_ptr<c10::Event> finished;
  {
    const std::lock_guard lock(mutex_);
    if (!free_events_.empty()) {
      finished = std::move(free_events_.back());
      free_events_.pop_back();
    }
  }
  if (!finished) finished = std::make_shared<c10::Event>(device_.type());
  finished->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  const std::lock_guard lock(mutex_);
  items_.push_back({std::move(finished), std::move(operation), sequence, Clock::now()});
  changed_.notify_all();
}

void DeviceWatch::check() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !answering_; });
  if (!failure_) return;
  told_ = true;
  std::rethrow_exception(failure_);
}

void DeviceWatch::watch() {
  std::unique_lock lock(mutex_);
  while (!failure_) {
    changed_.wait(lock, [&] { return stopping_ || !items_.empty(); });
    if (!stopping_) changed_.wait_for(lock, kAskEvery, [&] { return stopping_; });
    if (stopping_) return;
    std::exception_ptr cause;
    try {
      forget_finished();
    } catch (...) {
      cause = std::current_exception();  // an error of the device
    }
    if (items_.empty()) continue;
    const Item oldest = items_.front();
    lock.unlock();
    try {
      if (!cause) cause = sign_of_failure(oldest);
    } catch (...) {
      cause = std::current_exception();
    }
    lock.lock();
    if (cause) fail(lock, oldest, cause);
  }
}

void DeviceWatch::forget_finished() {
  while (!items_.empty() && items_.front().finished->query()) {
    free_events_.push_back(std::move(items_.front().finished));
    items_.pop_front();
  }
}

// Null, or why the oldest work that is queued will not be finished.
std::exception_ptr DeviceWatch::sign_of_failure(const Item& oldest) {
  const auto now = Clock::now();
  const auto cause = [&](const std::string& reason) {
    return std::make_exception_ptr(CommError(-1, oldest.operation, oldest.sequence, reason));
  };
  if (now - oldest.since > limit_) {
    const std::chrono::duration<double> seconds = now - oldest.since;
    return cause(concat("the device has waited in it for ", seconds.count(), " s"));
  }
  const std::exception_ptr answered = failure_answered_since(group_, answered_before_);
  const PostedFailures::Answer posted = posted_->ask();
  if (!answered && posted == PostedFailures::Answer::kNone && !peer_.is_gone()) return nullptr;
  if (!noticed_) noticed_ = now;
  if (now - std::max(*noticed_, oldest.since) < kGrace) return nullptr;
  if (answered) return answered;
  return cause(posted == PostedFailures::Answer::kPosted    ? "another rank has failed"
               : posted == PostedFailures::Answer::kNoStore ? "the store's host is gone"
                                                            : "the next rank has closed its "
                                                              "connection");
}

void DeviceWatch::fail(std::unique_lock<std::mutex>& lock, const Item& oldest,
                       const std::exception_ptr& cause) {
  answering_ = true;
  lock.unlock();
  // At the same time, for the others wait for this rank's word only so long.
  std::thread freeing;
  try {
    freeing = std::thread([this] { free_device(); });
  } catch (const std::system_error&) {  // then after it
  }
  std::exception_ptr named;
  try {
    raise_collective_failure(group_, oldest.operation, oldest.sequence, cause, answered_before_);
  } catch (...) {
    named = std::current_exception();
  }
  if (freeing.joinable()) {
    freeing.join();
  } else {
    free_device();
  }
  lock.lock();
  failure_ = named;
  answering_ = false;
  changed_.notify_all();
}

void DeviceWatch::free_device() {
  const auto abort = [&](c10d::ProcessGroup& group) {
    try {
      group.getBackend(device_.type())->abort();
    } catch (const std::exception& error) {
      log::error("the communicators of a failed group cannot be aborted: ", error_text(error));
    }
  };
  abort(group_);
  if (original_) abort(*original_);
}

}  // namespace thinwire::comm
