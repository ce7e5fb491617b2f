// Results of a forward pass of which a program may use only some in its loss.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace thinwire::detail {

// Copies of `results`, whose graphs end in one node. A backward pass from some of them then runs
// through all of the graph, so that the parameters that only the others depend on are reached, with
// undefined gradients, and the Reducer need not wait for them.
std::vector<at::Tensor> joined_results(const std::vector<at::Tensor>& results);

}  // namespace thinwire::detail
