#include "thinwire/comm/backend/staged.h"

#include <ATen/core/ivalue.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "thinwire/comm/backend/wrapper_backend.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using c10d::Backend;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;
using Tensors = std::vector<at::Tensor>;

// A tensor of the device and its place in pinned memory.
struct StagedTensor {
  at::Tensor device, host;
};

void check_staged(const at::Tensor& tensor) {
  check(tensor.is_cuda() && tensor.is_contiguous(),
        "MPI takes contiguous tensors in GPU memory through host memory, got shape ",
        tensor.sizes(), " with strides ", tensor.strides(), " on ", tensor.device());
}

StagedTensor place_for(const at::Tensor& tensor) {
  check_staged(tensor);
  return {tensor, at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true))};
}

StagedTensor copied_to_host(const at::Tensor& tensor) {
  StagedTensor staged = place_for(tensor);
  staged.host.copy_(tensor, /*non_blocking=*/true);
  return staged;
}

class StagedWork final : public c10d::Work {
 public:
  StagedWork(int rank, c10d::OpType type, std::vector<StagedTensor> answers)
      : Work(rank, type),
        answers_(std::move(answers)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::NoneType::get())) {}

  bool wait(std::chrono::milliseconds /*timeout*/) override {
    future_->waitAndThrow();
    for (const StagedTensor& answer : std::exchange(answers_, {}))
      answer.device.copy_(answer.host, /*non_blocking=*/true);
    return true;
  }
  bool isCompleted() override { return future_->completed(); }
  bool isSuccess() const override { return future_->completed() && !future_->hasError(); }
  std::exception_ptr exception() const override {
    return future_->hasError() ? future_->exception_ptr() : nullptr;
  }
  FuturePtr getFuture() override { return future_; }

 private:
  std::vector<StagedTensor> answers_;  // still to be copied back
  const FuturePtr future_;             // of the messages on the host
};

class StagedBackend final : public Backend, public WrapperBackend {
 public:
  explicit StagedBackend(c10::intrusive_ptr<Backend> inner)
      : Backend(inner->getRank(), inner->getSize()),
        inner_(std::move(inner)),
        thread_([this] { loop(); }) {}
  ~StagedBackend() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  StagedBackend(const StagedBackend&) = delete;
  StagedBackend& operator=(const StagedBackend&) = delete;

  const c10::intrusive_ptr<Backend>& wrapped() const override { return inner_; }
  // c10d takes backends of one type for one, so not that of `inner`.
  const std::string getBackendName() const override { return "staged"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return inner_->getBackendOptions(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return in_place(tensors, c10d::OpType::BROADCAST,
                    [this, options](Tensors& hosts) { return inner_->broadcast(hosts, options); });
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return in_place(tensors, c10d::OpType::ALLREDUCE,
                    [this, options](Tensors& hosts) { return inner_->allreduce(hosts, options); });
  }
  WorkPtr _allgather_base(at::Tensor& out, at::Tensor& in,
                          const c10d::AllgatherOptions& options) override {
    const StagedTensor sent = copied_to_host(in), received = place_for(out);
    return submit(c10d::OpType::_ALLGATHER_BASE, in.device(), {received},
                  [this, options, sent, received] {
                    at::Tensor into = received.host, from = sent.host;
                    return inner_->_allgather_base(into, from, options);
                  });
  }
  WorkPtr alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>& out_sizes,
                        std::vector<std::int64_t>& in_sizes,
                        const c10d::AllToAllOptions& options) override {
    const StagedTensor sent = copied_to_host(in), received = place_for(out);
    return submit(c10d::OpType::ALLTOALL_BASE, in.device(), {received},
                  [this, options, sent, received, out_sizes, in_sizes]() mutable {
                    at::Tensor into = received.host, from = sent.host;
                    return inner_->alltoall_base(into, from, out_sizes, in_sizes, options);
                  });
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    return submit(c10d::OpType::BARRIER, std::nullopt, {},
                  [this, options] { return inner_->barrier(options); });
  }

 private:
  struct Job {
    std::shared_ptr<c10::Event> copied;  // the messages are in host memory; null: there are none
    std::function<WorkPtr()> start;
    FuturePtr done;
  };

  WorkPtr in_place(const Tensors& tensors, c10d::OpType type,
                   const std::function<WorkPtr(Tensors&)>& start) {
    std::vector<StagedTensor> staged;
    Tensors hosts;
    for (const at::Tensor& tensor : tensors) {
      staged.push_back(copied_to_host(tensor));
      hosts.push_back(staged.back().host);
    }
    return submit(type, tensors.front().device(), std::move(staged),
                  [start, hosts]() mutable { return start(hosts); });
  }

  WorkPtr submit(c10d::OpType type, std::optional<at::Device> device,
                 std::vector<StagedTensor> answers, std::function<WorkPtr()> start) {
    auto work = c10::make_intrusive<StagedWork>(getRank(), type, std::move(answers));
    std::shared_ptr<c10::Event> copied;
    if (device) {
      copied = std::make_shared<c10::Event>(device->type());
      copied->record(c10::impl::VirtualGuardImpl(device->type()).getStream(*device));
    }
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back({std::move(copied), std::move(start), work->getFuture()});
    }
    changed_.notify_all();
    return work;
  }

  void loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      try {
        if (job.copied) job.copied->synchronize();
        job.start()->wait();
        job.done->markCompleted();
      } catch (...) {
        job.done->setError(std::current_exception());
      }
      lock.lock();
    }
  }

  const c10::intrusive_ptr<Backend> inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of these
};

}  // namespace

c10::intrusive_ptr<Backend> make_staged_backend(c10::intrusive_ptr<Backend> inner) {
  return c10::make_intrusive<StagedBackend>(std::move(inner));
}

bool is_staged(const Backend& backend) {
  return dynamic_cast<const StagedBackend*>(&backend) != nullptr;
}

bool has_gpus() {
  return at::detail::getCUDAHooks().hasCUDA() && at::detail::getCUDAHooks().getNumGPUs() > 0;
}

}  // namespace thinwire::comm
