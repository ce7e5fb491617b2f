// What the calls of a CompressedBackend return.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "thinwire/torch_ext/backend/call_board.h"

namespace thinwire::detail {

// A call as the CallBoard knows it.
struct WatchedCall {
  std::shared_ptr<CallBoard> board;
  std::uint64_t number = 0;
  std::string text;
};

// A call that goes through a codec, on the communication thread. Its profiler event has the name
// that the wrapped backend would give it, so that traces do not depend on the compression.
class CodedWork final : public c10d::Work {
 public:
  // `title` must live for ever. `outputs` are the call's results.
  CodedWork(int rank, c10d::OpType type, const char* title, std::uint64_t sequence,
            const std::vector<at::Tensor>& inputs, std::vector<at::Tensor> outputs,
            WatchedCall call);

  // For the communication thread, once.
  void complete(const std::exception_ptr& failure);

  // Throws what the call threw. A timeout, where given, is the caller's patience and not the
  // call's: it throws CommError and the call goes on.
  bool wait(std::chrono::milliseconds timeout) override;
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  std::uint64_t getSequencenumber() const override { return sequence_; }
  void abort() override {}

 private:
  bool finished_within(std::chrono::milliseconds time);

  const std::uint64_t sequence_;
  std::vector<at::Tensor> outputs_;
  const WatchedCall call_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// A call of the wrapped backend that another rank may have sent through a codec: wait() finds out.
class ExactWork final : public c10d::Work {
 public:
  ExactWork(c10::intrusive_ptr<c10d::Work> work, WatchedCall call);

  bool wait(std::chrono::milliseconds timeout) override;
  bool isCompleted() override { return work_->isCompleted(); }
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  int sourceRank() const override { return work_->sourceRank(); }
  std::vector<at::Tensor> result() override { return work_->result(); }
  void synchronize() override { work_->synchronize(); }
  void blockCurrentStream() override { work_->blockCurrentStream(); }
  void abort() override { work_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return work_->getFuture(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override {
    return work_->getFutureResult();
  }
  float getDuration() const override { return work_->getDuration(); }
  std::uint64_t getSequencenumber() const override { return work_->getSequencenumber(); }

 private:
  const c10::intrusive_ptr<c10d::Work> work_;
  const WatchedCall call_;
};

}  // namespace thinwire::detail
