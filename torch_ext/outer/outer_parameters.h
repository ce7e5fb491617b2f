// A module's parameters as outer steps see them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/nn/module.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/compressors/peft/pack.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire::detail {

// What requires a gradient, each tensor once, under the first of its names, in the order of the
// parts that share a threshold, so that each part is one run of a buffer. What a rank has of its
// own (comm::mark_rank_local()) is left out. Holds handles: what a program loads or converts in
// place is seen at the next use.
class OuterParameters {
 public:
  OuterParameters() = default;
  // Throws InvalidArgument for a module without parameters to train, for tensors that are not all
  // on the CPU or on one CUDA device, and for trained ones of no float type.
  OuterParameters(const torch::nn::Module& module, peft::Granularity granularity);

  const std::vector<at::Tensor>& trained() const { return trained_; }
  const std::vector<LayerInfo>& layers() const { return layers_; }
  const std::vector<comm::BucketLayer>& parts() const { return parts_; }
  std::int64_t numel() const { return numel_; }
  at::Device device() const { return device_; }
  // Name of trained()[index].
  const std::string& name(std::size_t index) const { return names_[index]; }

  // The trained parameters and their parts, a line each; and with what all ranks must have alike
  // besides: frozen parameters, buffers, the bases of adapters, and the kind of the device.
  const std::string& layout() const { return layout_; }
  const std::string& description() const { return description_; }

  // What rank 0 gives to all at the start, and what it gives again after every outer step.
  std::vector<at::Tensor> at_the_start() const;
  std::vector<at::Tensor> buffers() const;

  // Throws InvalidArgument that names the parameter where one has been frozen, unfrozen, converted
  // or reshaped since the construction: it would be trained, but not exchanged, or the reverse.
  void check_unchanged() const;

 private:
  struct Watched {
    std::string name;
    at::Tensor tensor;
    bool trained;
    at::ScalarType dtype;
    std::vector<std::int64_t> shape;
  };
  void add(const std::string& name, const at::Tensor& tensor, const std::string& part);

  std::vector<at::Tensor> trained_, buffers_, base_buffers_;
  std::vector<std::string> names_;
  std::vector<Watched> watched_;
  std::vector<LayerInfo> layers_;
  std::vector<comm::BucketLayer> parts_;
  std::int64_t numel_ = 0;
  at::Device device_ = at::kCPU;
  std::string layout_, description_;
};

}  // namespace thinwire::detail
