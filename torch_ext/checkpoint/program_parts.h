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

// All that torch::save() keeps of an optimizer, sharing the memory of its moments where they are
// known (see optimizer_state()); and back, with the same bits. Of another optimizer, whose moments
// only it knows, they are in what torch::save() would write, as they are in states that were saved
// as that alone. Throws InvalidArgument, naming the tensor, for moments that do not fit.
NamedTensors optimizer_tensors(torch::optim::Optimizer& optimizer);
void load_optimizer_tensors(torch::optim::Optimizer& optimizer, const NamedTensors& saved);

}  // namespace thinwire::detail
