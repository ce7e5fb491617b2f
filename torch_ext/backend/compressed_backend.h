// A c10d backend around any other, in which large floating-point collectives travel compressed: for
// programs that call collectives themselves, FSDP's or torch.compile's among them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/backend/backend_options.h"
#include "thinwire/torch_ext/backend/forwarding_backend.h"

namespace thinwire {
namespace detail {
class BackendEngine;
}

// What one rank's calls of a group were and cost.
struct BackendStatistics {
  struct Operation {
    std::uint64_t coded = 0;  // calls that went through a codec
    std::uint64_t exact = 0;  // calls that the wrapped backend made
    // Of `exact`: those that a codec would have taken, had they had a feedback key.
    std::uint64_t without_key = 0;
    std::uint64_t dense_bytes = 0;  // of the coded calls: what the wrapped backend would have sent
    std::uint64_t sent_bytes = 0;   // of the coded calls: what was sent, headers included
  };
  // "all_reduce", "reduce_scatter", "all_gather", "all_to_all".
  std::map<std::string, Operation> operations;
};

// Goes through a codec: all_reduce (coalesced as well) and every form of reduce_scatter, of sums
// and means, every form of all_gather, and all_to_all, of float32, float16, bfloat16 and float64
// tensors on the CPU with min_numel elements or more, each where the options name a codec for it.
// Everything else (integers, bool, complex, sparse, smaller tensors, other operations, other
// devices) is handed to the wrapped backend untouched. Whether a call is coded follows from what
// is equal on all ranks: the operation, the dtype and the number of elements. Replicas stay
// bit-identical. See Note [Feedback keys] for what is carried from call to call.
//
// Coded calls are made on a thread of their own over a duplicate of the wrapped backend, one after
// another; exact ones overtake them, as calls on one c10d group may. barrier() waits for both.
//
// Ranks whose calls do not fit together throw InvalidArgument that names both: at once where both
// are coded, after two seconds where one is and the other is not.
//
// Calls must be made in the same order on every rank, from one thread at a time, as with any c10d
// backend; statistics(), state() and waiting for works are thread-safe.
class CompressedBackend final : public detail::ForwardingBackend {
 public:
  // `store` must be a prefix of the group's own that nothing else uses. Collective: compares the
  // options (InvalidArgument on every rank, naming the first difference) and, where they name a
  // codec, duplicates `inner`, which must be gloo, mpi or able to split.
  CompressedBackend(BackendPtr inner, StorePtr store, BackendOptions options);
  // Finishes the calls that were made.
  ~CompressedBackend() override;

  const std::string getBackendName() const override;
  void setTimeout(std::chrono::milliseconds timeout) override;

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override;
  WorkPtr reduce_scatter(Tensors& outs, TensorLists& ins,
                         const c10d::ReduceScatterOptions& options) override;
  WorkPtr _reduce_scatter_base(at::Tensor& out, at::Tensor& in,
                               const c10d::ReduceScatterOptions& options) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outs, Tensors& ins,
                                          const c10d::ReduceScatterOptions& options) override;
  WorkPtr allgather(TensorLists& outs, Tensors& ins,
                    const c10d::AllgatherOptions& options) override;
  WorkPtr _allgather_base(at::Tensor& out, at::Tensor& in,
                          const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_coalesced(TensorLists& outs, Tensors& ins,
                              const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outs, Tensors& ins,
                                          const c10d::AllgatherOptions& options) override;
  WorkPtr alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<std::int64_t>& out_sizes,
                        std::vector<std::int64_t>& in_sizes,
                        const c10d::AllToAllOptions& options) override;
  WorkPtr alltoall(Tensors& outs, Tensors& ins, const c10d::AllToAllOptions& options) override;
  void startCoalescing() override;
  WorkPtr endCoalescing() override;
  WorkPtr barrier(const c10d::BarrierOptions& options) override;
  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override;

  std::uint64_t getSequenceNumberForGroup() override;
  void waitForPendingWorks() override;
  BackendPtr split(const StorePtr& store, const std::vector<int>& ranks,
                   const c10::intrusive_ptr<Options>& options) override;
  BackendPtr merge(const StorePtr& store, const c10::intrusive_ptr<Options>& options,
                   const int& rank, const int& size) override;
  BackendPtr shrink(const std::vector<std::int64_t>& excluded, int flags,
                    const c10::intrusive_ptr<Options>& options) override;
  void abort() override;
  void shutdown() override;

  const BackendOptions& options() const { return options_; }
  BackendStatistics statistics() const;
  // What feedback keys carry from call to call, float32 and int64 tensors: residuals of this rank,
  // and what was received. Waits for the calls that were made.
  std::map<std::string, at::Tensor> state() const;
  // Between calls; collective. Throws InvalidArgument, on every rank, for a tensor that state()
  // does not give, and for states of different steps or replicas. Nothing has changed then.
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  enum class Kind { kAllReduce, kReduceScatter, kAllGather, kAllToAll };
  struct Counters {
    std::atomic<std::uint64_t> coded = 0, exact = 0, without_key = 0, dense = 0, sent = 0;
  };

  static bool is_codable(const at::Tensor& tensor);
  // Whether the call goes through the setting's codec; `sum`: whether its operation is one that a
  // codec may take.
  bool codes(Kind kind, const comm::LayerSetting& setting, const at::Tensor& tensor,
             bool sum = true);
  // Any call that codes() was asked about: as the wrapped backend made it, `work`, or as `job`,
  // which returns the bytes sent, beside `rest`, the part of it that the wrapped backend makes.
  WorkPtr exact(Kind kind, const comm::LayerSetting& setting, const at::Tensor& tensor,
                WorkPtr work);
  WorkPtr coded(Kind kind, c10d::OpType type, const Tensors& inputs, Tensors outputs,
                std::string text, std::uint64_t dense_bytes, WorkPtr rest,
                std::function<std::uint64_t()> job);
  // parts[i][r] of this rank is for rank r, whose sum goes to outs[i].
  WorkPtr reduce_scatter_parts(const Tensors& outs, const TensorLists& parts, bool mean,
                               c10d::OpType type, WorkPtr rest);
  // ins[i] of rank r becomes outs[i][r] on all ranks.
  WorkPtr all_gather_parts(const TensorLists& outs, const Tensors& ins, Tensors results,
                           c10d::OpType type, WorkPtr rest);
  WorkPtr all_to_all_parts(const Tensors& outs, const Tensors& ins, Tensors results,
                           c10d::OpType type);
  Counters& counters(Kind kind) { return counters_[static_cast<std::size_t>(kind)]; }

  const BackendOptions options_;
  const BackendSettings settings_;
  const std::string own_name_;
  std::array<Counters, 4> counters_;
  std::uint64_t calls_ = 0;  // that may be coded on some rank
  std::uint64_t coded_calls_ = 0;
  bool coalescing_ = false;
  Tensors coalesced_;  // results of coded calls since startCoalescing()
  // Null where nothing is compressed. Last, so that its thread ends first.
  std::unique_ptr<detail::BackendEngine> engine_;
};

// CompressedBackend in the place of every CPU backend of a group that a C++ program has made: the
// same ranks and store, and for other devices its own backends. Collective; errors as
// CompressedBackend.
c10::intrusive_ptr<c10d::ProcessGroup> compressed_group(
    const c10::intrusive_ptr<c10d::ProcessGroup>& group, const BackendOptions& options);

}  // namespace thinwire
