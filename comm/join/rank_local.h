// Parameters that every rank has its own of, in a model whose other parameters are replicated.
#pragma once

#include <ATen/core/Tensor.h>

namespace thinwire::comm {

// Marks a parameter or buffer as this rank's own, an expert's weight for instance: whoever keeps
// the replicas of a model equal (DistributedDataParallel, OuterOptimizer) neither broadcasts nor
// averages it, and expects nothing like it on other ranks: one may have more experts than another.
//
// The mark is on the tensor object, as requires_grad is: it stays when the tensor's values are
// replaced (torch::load(), module->to(dtype)), a copy of the tensor does not have it, and it ends
// with the tensor. Thread-safe.
void mark_rank_local(const at::Tensor& tensor);

// Whether mark_rank_local() was called for it. Thread-safe.
bool is_rank_local(const at::Tensor& tensor);

}  // namespace thinwire::comm
