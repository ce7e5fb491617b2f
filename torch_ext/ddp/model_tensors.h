// The tensors of a module that its replicas share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::detail {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;  // the module's own, so that it shows what becomes of it
};

// A tensor that is registered more than once is one, under its first name. Not thread-safe.
class ModelTensors {
 public:
  // Not collective. Throws InvalidArgument, naming the parameter, for what cannot be averaged (on
  // a device that is neither a CPU nor CUDA's, or another than the parameters before it, or with
  // sparse gradients), and for a name or pattern in
  // `ignored` that fits none.
  ModelTensors(std::shared_ptr<torch::nn::Module> module, const std::vector<std::string>& ignored);

  // Parameters that required a gradient at construction.
  const std::vector<NamedTensor>& trained() const { return trained_; }
  std::vector<at::Tensor> trained_tensors() const;
  // The same as layers of a plan; complex ones are real with one dimension more, as in buckets.
  std::vector<LayerInfo> layers() const;
  // All parameters that replicas share, in the module's order.
  const std::vector<NamedTensor>& shared() const { return shared_; }
  // The same, and the buffers, those of an adapter's base too: the tensors as they are now,
  // detached.
  std::vector<at::Tensor> parameters() const;
  std::vector<at::Tensor> buffers() const;
  // A line a tensor; equal on all ranks that may train together.
  const std::string& description() const { return description_; }
  // Where all parameters are.
  at::Device device() const { return device_; }
  // CRC-32C of parameters().
  std::uint32_t crc32c() const;

  // Throws InvalidArgument, naming them, where parameters were unfrozen, added, replaced, reshaped,
  // moved or converted since construction. `thoroughly` looks also for parameters that are new in
  // the module, which takes 0.1 us for each it has.
  void check_unchanged(bool thoroughly) const;

 private:
  bool is_left_alone(const NamedTensor& tensor, const std::vector<std::string>& ignored);
  void add_parameter(const NamedTensor& parameter);
  [[noreturn]] void throw_other_parameters() const;

  std::shared_ptr<torch::nn::Module> module_;
  std::vector<NamedTensor> shared_;  // all parameters but those left alone
  std::vector<NamedTensor> trained_, frozen_;
  std::vector<NamedTensor> buffers_;
  at::Device device_ = at::kCPU;
  bool leaves_some_alone_ = false;
  std::string description_;
  // Of trained_.
  std::vector<at::ScalarType> types_;
  std::vector<std::vector<std::int64_t>> shapes_;
  std::vector<const c10::TensorImpl*> registered_;  // all parameters of the module, in order
};

}  // namespace thinwire::detail
