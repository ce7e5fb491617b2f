#include "thinwire/torch_ext/backend/backend_work.h"

#include <ATen/core/jit_type.h>

#include <condition_variable>
#include <mutex>
#include <utility>

#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

[[noreturn]] void throw_out_of_time(const WatchedCall& call, std::chrono::milliseconds timeout) {
  throw CommError(-1, call.text, call.number,
                  concat("it has not finished within ", timeout.count(), " ms"));
}

}  // namespace

CodedWork::CodedWork(int rank, c10d::OpType type, const char* title, std::uint64_t sequence,
                     const std::vector<at::Tensor>& inputs, std::vector<at::Tensor> outputs,
                     WatchedCall call)
    : Work(rank, type, title, inputs),
      sequence_(sequence),
      outputs_(std::move(outputs)),
      call_(std::move(call)),
      future_(
          c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {
}

void CodedWork::complete(const std::exception_ptr& failure) {
  finish(failure);
  if (failure) {
    future_->setError(failure);
  } else {
    future_->markCompleted(c10::IValue(outputs_));
  }
}

bool CodedWork::finished_within(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return cv_.wait_for(lock, time, [this] { return completed_; });
}

bool CodedWork::wait(std::chrono::milliseconds timeout) {
  if (timeout != kNoTimeout) {
    if (!finished_within(timeout)) throw_out_of_time(call_, timeout);
  } else {
    call_.board->watch(call_.number, call_.text,
                       [this](std::chrono::milliseconds time) { return finished_within(time); });
  }
  const std::lock_guard lock(mutex_);
  if (exception_) std::rethrow_exception(exception_);
  return true;
}

ExactWork::ExactWork(c10::intrusive_ptr<c10d::Work> work, WatchedCall call)
    : Work(-1, work->retrieveOpType()), work_(std::move(work)), call_(std::move(call)) {}

bool ExactWork::wait(std::chrono::milliseconds timeout) {
  if (timeout != kNoTimeout || work_->isCompleted()) return work_->wait(timeout);
  struct Signal {
    std::mutex mutex;
    std::condition_variable changed;
    bool finished = false;
  };
  const auto signal = std::make_shared<Signal>();
  work_->getFuture()->addCallback([signal](c10::ivalue::Future&) {
    const std::lock_guard lock(signal->mutex);
    signal->finished = true;
    signal->changed.notify_all();
  });
  call_.board->watch(call_.number, call_.text, [&](std::chrono::milliseconds time) {
    std::unique_lock lock(signal->mutex);
    return signal->changed.wait_for(lock, time, [&] { return signal->finished; });
  });
  return work_->wait();
}

}  // namespace thinwire::detail
