// The Work of an operation over MPI, and the tensors it stands on.
#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "thinwire/comm/backend/mpi/schedule.h"

namespace thinwire::comm::mpi {

// Thread-safe. Callbacks on its future run on the progress thread (see Note [One MPI thread]), so
// they must not wait for another operation; wait() called there throws instead of never returning.
class MpiWork final : public c10d::Work {
 public:
  MpiWork(int rank, c10d::OpType type, std::uint64_t sequence, std::vector<at::Tensor> outputs);

  bool wait(std::chrono::milliseconds timeout) override;
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  std::uint64_t getSequencenumber() const override { return sequence_; }
  int sourceRank() const override;

  // Called once, by the progress thread.
  void succeed(int source);
  void fail(std::exception_ptr cause);

 private:
  std::uint64_t sequence_;
  std::vector<at::Tensor> outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
  int source_ = -1;
};

// Memory that operations use while they run, kept from one to the next: fresh pages for every
// reduction cost more than the reduction. Thread-safe.
class ScratchPool {
 public:
  // At least `bytes`, in nobody else's use. In use is what anybody but the pool refers to.
  at::Tensor take(std::size_t bytes);

 private:
  // As many reductions as are likely to be in flight at once.
  static constexpr std::size_t kKept = 8;

  std::mutex mutex_;
  std::vector<at::Tensor> kept_;
};

// The memory that messages of one operation use. One contiguous tensor is used as it is; several,
// or one that is not contiguous, are copied into one buffer, each aligned to its element size.
// Throws InvalidArgument for tensors that are not dense CPU tensors, and for outputs whose elements
// share memory.
class Staging {
 public:
  // Memory with the values of the tensors, to be read.
  Block input(const std::vector<at::Tensor>& tensors);
  // Memory whose values become those of the tensors when the operation has succeeded.
  Block output(const std::vector<at::Tensor>& tensors);
  // Both.
  Block in_out(const std::vector<at::Tensor>& tensors);
  Block scratch(ScratchPool& pool, std::size_t bytes);

  // Copies what was received to the outputs that are not contiguous.
  void finish() const;
  // The results as the program sees them.
  const std::vector<at::Tensor>& outputs() const { return outputs_; }

 private:
  Block hold(const at::Tensor& tensor);
  Block stage(const std::vector<at::Tensor>& tensors, bool reads, bool writes);

  std::vector<at::Tensor> held_;
  std::vector<at::Tensor> outputs_;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;  // to, from
};

}  // namespace thinwire::comm::mpi
