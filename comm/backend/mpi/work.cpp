#include "thinwire/comm/backend/mpi/work.h"

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue_inl.h>
#include <ATen/core/jit_type.h>

#include "thinwire/comm/backend/mpi/runtime.h"
#include "thinwire/common/error.h"

namespace thinwire::comm::mpi {
namespace {

void check_supported(const at::Tensor& tensor) {
  check(tensor.defined(), "the backend mpi got an undefined tensor");
  check(tensor.device().is_cpu() && tensor.layout() == at::kStrided,
        "the backend mpi takes dense CPU tensors, got a ", tensor.layout(), " tensor on ",
        tensor.device(), "; the backend nccl takes CUDA tensors");
}

// Whether the elements lie in memory in logical order, as they are.
bool is_plain(const at::Tensor& tensor) {
  return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
}

}  // namespace

MpiWork::MpiWork(int rank, c10d::OpType type, std::uint64_t sequence,
                 std::vector<at::Tensor> outputs)
    : Work(rank, type),
      sequence_(sequence),
      outputs_(std::move(outputs)),
      future_(
          c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {
}

bool MpiWork::wait(std::chrono::milliseconds timeout) {
  if (on_progress_thread() && !isCompleted())
    throw InvalidArgument(
        "a callback of an operation over MPI must not wait for another one: it runs on the thread "
        "that would have to finish it");
  return Work::wait(timeout);
}

int MpiWork::sourceRank() const {
  const std::lock_guard lock(mutex_);
  return source_;
}

void MpiWork::succeed(int source) {
  {
    const std::lock_guard lock(mutex_);
    source_ = source;
  }
  // The future first, so that it is complete for whoever returns from wait().
  future_->markCompleted(c10::IValue(outputs_));
  finish();
}

void MpiWork::fail(std::exception_ptr cause) {
  future_->setError(cause);
  finish(std::move(cause));
}

Block Staging::hold(const at::Tensor& tensor) {
  held_.push_back(tensor);
  return {tensor.data_ptr(), static_cast<std::size_t>(tensor.nbytes())};
}

Block Staging::stage(const std::vector<at::Tensor>& tensors, bool reads, bool writes) {
  for (const at::Tensor& tensor : tensors) {
    check_supported(tensor);
    check(!writes || at::has_internal_overlap(tensor) != at::MemOverlap::Yes,
          "elements of an output share memory: shape ", tensor.sizes(), ", strides ",
          tensor.strides(), "; clone() it first");
    if (writes) outputs_.push_back(tensor);
  }
  if (tensors.size() == 1 && is_plain(tensors[0])) return hold(tensors[0]);

  std::vector<std::int64_t> offsets;
  std::int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) {
    const auto alignment = static_cast<std::int64_t>(tensor.element_size());
    bytes = (bytes + alignment - 1) / alignment * alignment;
    offsets.push_back(bytes);
    bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  const at::NoGradGuard no_grad;
  const at::Tensor buffer = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].numel() == 0) continue;
    const at::Tensor part =
        buffer.narrow(0, offsets[i], static_cast<std::int64_t>(tensors[i].nbytes()))
            .view(tensors[i].scalar_type())
            .view(tensors[i].sizes());
    if (reads) part.copy_(tensors[i]);
    if (writes) copies_.emplace_back(tensors[i], part);
  }
  return hold(buffer);
}

Block Staging::input(const std::vector<at::Tensor>& tensors) {
  return stage(tensors, true, false);
}

Block Staging::output(const std::vector<at::Tensor>& tensors) {
  return stage(tensors, false, true);
}

Block Staging::in_out(const std::vector<at::Tensor>& tensors) {
  return stage(tensors, true, true);
}

Block Staging::scratch(ScratchPool& pool, std::size_t bytes) {
  return {hold(pool.take(bytes)).data, bytes};
}

at::Tensor ScratchPool::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto size_of = [](const at::Tensor& tensor) {
    return static_cast<std::size_t>(tensor.nbytes());
  };
  // The smallest that will do; else the smallest of all goes, so that the pool grows to what the
  // program needs and no further.
  at::Tensor* fitting = nullptr;
  at::Tensor* smallest = nullptr;
  for (at::Tensor& tensor : kept_) {
    if (tensor.use_count() > 1) continue;
    if (size_of(tensor) >= bytes && (fitting == nullptr || size_of(tensor) < size_of(*fitting)))
      fitting = &tensor;
    if (smallest == nullptr || size_of(tensor) < size_of(*smallest)) smallest = &tensor;
  }
  if (fitting != nullptr) return *fitting;
  const at::Tensor made =
      at::empty({static_cast<std::int64_t>(bytes)}, at::TensorOptions().dtype(at::kByte));
  if (smallest != nullptr)
    *smallest = made;
  else if (kept_.size() < kKept)
    kept_.push_back(made);
  return made;
}

void Staging::finish() const {
  const at::NoGradGuard no_grad;
  for (const auto& [to, from] : copies_) to.copy_(from);
}

}  // namespace thinwire::comm::mpi
