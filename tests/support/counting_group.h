// A group that counts its collectives.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::testing {

// The names of the collectives in the order in which this rank posted them, with their bytes:
// "all_reduce 400".
using CollectiveLog = std::vector<std::string>;

class CountingBackend : public c10d::Backend {
 public:
  CountingBackend(c10::intrusive_ptr<c10d::Backend> inner, std::shared_ptr<CollectiveLog> log)
      : c10d::Backend(inner->getRank(), inner->getSize()),
        inner_(std::move(inner)),
        log_(std::move(log)) {}

  const std::string getBackendName() const override { return "counting"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    note("all_reduce", tensors[0]);
    return inner_->allreduce(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    note("all_gather", input);
    return inner_->_allgather_base(output, input, options);
  }
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& output_sizes,
                                               std::vector<std::int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& options) override {
    note("all_to_all", input);
    return inner_->alltoall_base(output, input, output_sizes, input_sizes, options);
  }

 private:
  void note(const char* name, const at::Tensor& tensor) {
    log_->push_back(std::string(name) + " " + std::to_string(tensor.nbytes()));
  }

  c10::intrusive_ptr<c10d::Backend> inner_;
  std::shared_ptr<CollectiveLog> log_;
};

// The rank's group with a count; `log` gets its collectives.
template <typename Backend = CountingBackend>
c10::intrusive_ptr<c10d::ProcessGroup> counting_group(
    const RankContext& ctx,
    std::shared_ptr<CollectiveLog> log = std::make_shared<CollectiveLog>()) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(
      c10::make_intrusive<c10d::PrefixStore>("counting", ctx.store), ctx.rank, ctx.size);
  group->setBackend(
      c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM,
      c10::make_intrusive<Backend>(ctx.group->getBackend(c10::DeviceType::CPU), std::move(log)));
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  return group;
}

}  // namespace thinwire::testing
