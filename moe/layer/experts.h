// The experts of one rank. Rows come sorted by expert.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/api/include/torch/nn/module.h>

namespace thinwire::moe {

// What a checkpoint holds of the experts: name -> tensor with the number of the expert in the name,
// so that it does not depend on the number of ranks.
using ExpertState = std::vector<std::pair<std::string, at::Tensor>>;

// Experts first_expert .. first_expert + count - 1. Initial weights depend on the expert's number
// and the seed alone.
class ExpertGroup : public torch::nn::Module {
 public:
  ExpertGroup(const std::string& name, std::int64_t first_expert, std::int64_t count)
      : torch::nn::Module(name), first_expert_(first_expert), count_(count) {}

  // rows: [n, d], the first expert_rows[0] for the first expert and so on -> [n, d]. An expert may
  // have no rows.
  virtual at::Tensor forward(const at::Tensor& rows,
                             const std::vector<std::int64_t>& expert_rows) = 0;

  // "<number>.<parameter>" of every expert of this rank, as tensors that share memory with the
  // parameters, in order of the experts.
  virtual ExpertState expert_state() const = 0;

  std::int64_t first_expert() const { return first_expert_; }
  std::int64_t count() const { return count_; }

 private:
  std::int64_t first_expert_;
  std::int64_t count_;
};

enum class Activation { kRelu, kGelu, kSilu, kSwiGlu };

struct FfnOptions {
  std::int64_t dim = 0;
  std::int64_t hidden = 0;
  Activation activation = Activation::kGelu;
  bool bias = true;
  std::uint64_t seed = 0;
};

// Two-layer perceptrons, all experts in stacked parameters w1 [E, d, h], b1 [E, 1, h], w2
// [E, h, d], b2 [E, 1, d] (w1 has 2h columns for SwiGLU: silu of the first half times the second).
// Experts with about equally many rows are computed in one batched product, others one by one.
class GroupedFfn : public ExpertGroup {
 public:
  GroupedFfn(std::int64_t first_expert, std::int64_t count, const FfnOptions& options);

  at::Tensor forward(const at::Tensor& rows, const std::vector<std::int64_t>& expert_rows) override;
  ExpertState expert_state() const override;

 private:
  at::Tensor activate(const at::Tensor& hidden) const;
  at::Tensor one_by_one(const at::Tensor& rows, const std::vector<std::int64_t>& expert_rows) const;

  FfnOptions options_;
  at::Tensor w1_, b1_, w2_, b2_;
};

// An expert of the user's own.
class Expert : public torch::nn::Module {
 public:
  using torch::nn::Module::Module;
  // [n, d] -> [n, d], n > 0.
  virtual at::Tensor forward(const at::Tensor& rows) = 0;
};
// Makes the expert with the given number; it must not depend on the rank that calls it.
using ExpertFactory = std::function<std::shared_ptr<Expert>(std::int64_t expert)>;

// Any modules. An expert without rows is not called, so its parameters keep an undefined gradient.
class CustomExperts : public ExpertGroup {
 public:
  CustomExperts(std::int64_t first_expert, std::int64_t count, const ExpertFactory& factory);

  at::Tensor forward(const at::Tensor& rows, const std::vector<std::int64_t>& expert_rows) override;
  ExpertState expert_state() const override;

 private:
  std::vector<std::shared_ptr<Expert>> experts_;
};

}  // namespace thinwire::moe
