// A small net, trained by the real c10d::Reducer on the ranks' devices, and by one process on the
// CPU as the truth.
#pragma once

#include <memory>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace thinwire::testing {

struct ReducerNet {
  std::vector<at::Tensor> parameters;

  explicit ReducerNet(at::Device device) {
    const auto generator = at::detail::createCPUGenerator(3);
    for (const std::vector<std::int64_t>& shape :
         {std::vector<std::int64_t>{64, 32}, {64}, {10, 64}, {10}}) {
      const at::Tensor values = at::randn(shape, generator, at::TensorOptions()) * 0.2;
      parameters.push_back(values.to(device).requires_grad_(true));
    }
  }

  // Of the batch that a rank has in a step.
  at::Tensor loss(int rank, int step) const {
    const auto generator =
        at::detail::createCPUGenerator(static_cast<std::uint64_t>(100 * step + rank));
    const auto device = parameters[0].device();
    const at::Tensor x = at::randn({16, 32}, generator, at::TensorOptions()).to(device);
    const at::Tensor y = at::randn({16, 10}, generator, at::TensorOptions()).to(device);
    const at::Tensor hidden = at::relu(at::linear(x, parameters[0], parameters[1]));
    return at::mse_loss(at::linear(hidden, parameters[2], parameters[3]), y);
  }

  void step() {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : parameters) {
      parameter.sub_(parameter.grad(), 0.1);
      parameter.mutable_grad().zero_();
    }
  }

  at::Tensor flat() const {
    std::vector<at::Tensor> all;
    for (const at::Tensor& one : parameters) all.push_back(one.detach().cpu().flatten());
    return at::cat(all);
  }

  // The parameters after `steps`, where each gradient is the sum over ranks of its part of the
  // mean.
  static at::Tensor trained_on_cpu(int ranks, int steps) {
    ReducerNet net(at::kCPU);
    for (int step = 0; step < steps; ++step) {
      std::vector<at::Tensor> sums(net.parameters.size());
      for (int rank = 0; rank < ranks; ++rank) {
        net.loss(rank, step).backward();
        for (std::size_t i = 0; i < sums.size(); ++i) {
          const at::Tensor part = net.parameters[i].grad() * (1.0 / ranks);
          sums[i] = rank == 0 ? part : sums[i] + part;
          net.parameters[i].mutable_grad().zero_();
        }
      }
      for (std::size_t i = 0; i < sums.size(); ++i) net.parameters[i].mutable_grad().copy_(sums[i]);
      net.step();
    }
    return net.flat();
  }
};

// The Reducer of a net, with buckets so small that there are several.
class NetTraining {
 public:
  NetTraining(ReducerNet& net, const c10::intrusive_ptr<c10d::ProcessGroup>& group,
              std::unique_ptr<c10d::CommHookInterface> hook)
      : net_(net) {
    constexpr std::int64_t kBucketBytes = 1024;
    const auto buckets =
        std::get<0>(c10d::compute_bucket_assignment_by_size(net.parameters, {kBucketBytes}));
    reducer_ = std::make_shared<c10d::Reducer>(
        net.parameters, buckets, group, std::vector<bool>(net.parameters.size(), false),
        kBucketBytes, false, /*gradient_as_bucket_view=*/false,
        std::unordered_map<std::size_t, std::string>{}, kBucketBytes, false, false,
        std::vector<std::int64_t>{});
    logger_ = std::make_shared<c10d::Logger>(reducer_);
    logger_->set_construction_data_and_log("net", {}, -1, false, false, false);
    reducer_->set_logger(logger_);
    if (hook != nullptr) reducer_->register_comm_hook(std::move(hook));
  }

  void step(int rank, int step) {
    reducer_->rebuild_buckets();
    reducer_->prepare_for_forward();
    const at::Tensor loss = net_.loss(rank, step);
    reducer_->prepare_for_backward({loss});
    loss.backward();
    net_.step();
  }

 private:
  ReducerNet& net_;
  std::shared_ptr<c10d::Reducer> reducer_;
  std::shared_ptr<c10d::Logger> logger_;
};

}  // namespace thinwire::testing
