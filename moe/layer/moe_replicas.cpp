// What ranks with the same experts, or the same router, add up between passes.

#include <ATen/ATen.h>

#include <algorithm>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {
namespace {

std::int64_t bytes_of_all_reduce(const at::Tensor& tensor, const c10d::ProcessGroup& group) {
  return static_cast<std::int64_t>(
      comm::ring_bytes(static_cast<std::int64_t>(tensor.nbytes()), group.getSize()));
}

}  // namespace

void MoELayer::update_expert_bias() {
  constexpr const char* kOperation = "the load of the experts";
  const std::uint64_t sequence = averages_++;
  std::vector<at::Tensor> load;
  dispatcher_->guard(kOperation, sequence, [&] {
    load = {at::tensor(load_, at::kLong).to(router_->parameters()[0].device())};
  });
  for (const auto& group : {dispatcher_->group(), replicas_}) {
    if (group == nullptr || group->getSize() == 1) continue;
    comm::run_collective(*group, kOperation, sequence, [&] { return group->allreduce(load); });
    dispatcher_->add_replica_bytes(bytes_of_all_reduce(load[0], *group));
  }
  dispatcher_->guard(kOperation, sequence, [&] {
    const at::Tensor host = load[0].cpu();
    const auto* rows = host.const_data_ptr<std::int64_t>();
    router_->update_bias({rows, rows + host.numel()});
    std::fill(load_.begin(), load_.end(), 0);
  });
}

void MoELayer::average_expert_gradients() {
  if (replicas_ == nullptr || replicas_->getSize() == 1) return;
  constexpr const char* kOperation = "averaging the gradients of replicated experts";
  const std::uint64_t sequence = averages_++;
  const std::vector<at::Tensor> parameters = experts_->parameters();
  if (parameters.empty()) return;
  comm::guard(*replicas_, kOperation, sequence, [&] {
    // An expert may have had rows on some replicas only; one without on any keeps no gradient.
    std::vector<std::int64_t> defined;
    for (const at::Tensor& parameter : parameters) defined.push_back(parameter.grad().defined());
    std::vector<at::Tensor> anywhere = {at::tensor(defined, at::kLong).to(parameters[0].device())};
    comm::wait(*replicas_, replicas_->allreduce(anywhere), kOperation, sequence);
    std::int64_t bytes = bytes_of_all_reduce(anywhere[0], *replicas_);
    const at::Tensor host = anywhere[0].cpu();
    const double share =
        options_.expert_gradient == ExpertGradient::kMean ? 1.0 / replicas_->getSize() : 1.0;
    const at::NoGradGuard no_grad;
    std::vector<c10::intrusive_ptr<c10d::Work>> under_way;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (host.const_data_ptr<std::int64_t>()[i] == 0) continue;
      at::Tensor& gradient = parameters[i].mutable_grad();
      gradient = gradient.defined() ? gradient.contiguous() : at::zeros_like(parameters[i]);
      // Before they are added: half types overflow at a few times their largest gradient.
      if (share != 1.0) gradient.mul_(share);
      std::vector<at::Tensor> one = {gradient};
      under_way.push_back(replicas_->allreduce(one));
      bytes += bytes_of_all_reduce(gradient, *replicas_);
    }
    for (const auto& work : under_way) comm::wait(*replicas_, work, kOperation, sequence);
    dispatcher_->add_replica_bytes(bytes);
  });
}

}  // namespace thinwire::moe
