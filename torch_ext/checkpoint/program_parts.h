// The parts of a training program whose state torch keeps, as named tensors.
#pragma once

#include <functional>
#include <string>

#include "thinwire/comm/state/named_tensors.h"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace thinwire::detail {

// Parameters and buffers of a module, sharing its memory; and back, in place. Throws
// InvalidArgument, naming the tensor, for other names, shapes or types; `what` names the state.
NamedTensors module_tensors(const torch::nn::Module& module);
void load_module(const std::string& what, torch::nn::Module& module, const NamedTensors& saved);

// As torch::save() keeps it.
NamedTensors optimizer_archive(const torch::optim::Optimizer& optimizer);
void load_optimizer_archive(torch::optim::Optimizer& optimizer, const NamedTensors& saved);

}  // namespace thinwire::detail
