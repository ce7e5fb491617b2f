// Modules that compute with tensors which are not theirs: an adapter and the base that it stands
// on.
#pragma once

#include <string>
#include <vector>

#include <torch/nn/module.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire {

// What a module inherits beside torch::nn::Module when its forward pass reads another module that
// is not its child, so that whoever replicates it (DistributedDataParallel, OuterOptimizer) knows
// of that one: replicas with different bases train one adapter for different functions.
class StandsOnBase {
 public:
  virtual ~StandsOnBase() = default;
  virtual const torch::nn::Module& base() const = 0;
};

// Gives rank `root`'s bases of the adapters below `module` (itself included) to all ranks:
// parameters and buffers, as they are, so no adapter may be merged into them; what a rank has of
// its own (comm/join/rank_local.h: a MoELayer's experts) stays. For ranks that made or loaded
// different ones, before DistributedDataParallel or OuterOptimizer compares them. Collective.
// Throws InvalidArgument on every rank where there is no base, or where names, shapes or types
// differ between ranks.
void broadcast_base(const torch::nn::Module& module,
                    const c10::intrusive_ptr<c10d::ProcessGroup>& group, int root = 0);

namespace detail {

// A line for every base below `module`, itself included: the adapter's path, then the XXH3-128 of
// the names, types, shapes and bits of the base's parameters and buffers that all ranks have. Empty
// without bases.
std::string describe_bases(const torch::nn::Module& module);

// Handles of the bases' buffers that all ranks have, which training changes as any others
// (batch-norm statistics).
std::vector<at::Tensor> base_buffers(const torch::nn::Module& module);
// Handles of all that the bases hold and all ranks have, each tensor once.
std::vector<at::Tensor> base_tensors(const torch::nn::Module& module);

}  // namespace detail
}  // namespace thinwire
