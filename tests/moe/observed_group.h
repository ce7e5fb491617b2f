// A group whose collectives a test sees before they begin.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::moe::testing {

// "all_to_all", and the payload bytes that leave this rank for it (of an all_reduce in a ring).
// What it throws, the collective throws where it is started.
using SeeCollective = std::function<void(const std::string& name, std::int64_t bytes)>;

class ObservedBackend : public c10d::Backend {
 public:
  ObservedBackend(c10::intrusive_ptr<c10d::ProcessGroup> inner, SeeCollective see)
      : c10d::Backend(inner->getRank(), inner->getSize()),
        inner_(std::move(inner)),
        see_(std::move(see)) {}

  const std::string getBackendName() const override { return "observed"; }

  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_splits,
                                               std::vector<std::int64_t>& input_splits,
                                               const c10d::AllToAllOptions& options) override {
    const std::int64_t row =
        input.size(0) == 0 ? 0 : static_cast<std::int64_t>(input.nbytes()) / input.size(0);
    std::int64_t bytes = 0;
    for (int peer = 0; peer < getSize(); ++peer) {
      if (peer != getRank()) bytes += input_splits[static_cast<std::size_t>(peer)] * row;
    }
    see_("all_to_all", bytes);
    return inner_->alltoall_base(output, input, output_splits, input_splits, options);
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    see_("all_gather", static_cast<std::int64_t>(input.nbytes()) * (getSize() - 1));
    return inner_->_allgather_base(output, input, options);
  }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    see_("all_reduce",
         2 * static_cast<std::int64_t>(tensors[0].nbytes()) * (getSize() - 1) / getSize());
    return inner_->allreduce(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    see_("broadcast",
         options.rootRank == getRank() ? static_cast<std::int64_t>(tensors[0].nbytes()) : 0);
    return inner_->broadcast(tensors, options);
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> inner_;
  SeeCollective see_;
};

// The ranks of `inner`, with its store.
inline c10::intrusive_ptr<c10d::ProcessGroup> observed_group(
    const c10::intrusive_ptr<c10d::ProcessGroup>& inner, SeeCollective see) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(inner->getStore(), inner->getRank(),
                                                       inner->getSize());
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM,
                    c10::make_intrusive<ObservedBackend>(inner, std::move(see)));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return group;
}

}  // namespace thinwire::moe::testing
