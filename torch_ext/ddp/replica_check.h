// Weights that should have the same bits on every rank, and do not: a bit that flipped in one
// rank's memory, or a program that changed them on one rank alone.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/ddp/model_tensors.h"

namespace thinwire::detail {

// Compares the tensors of all ranks by checksum, one by one. Throws CommError, with one text on
// every rank, that names the first tensor that differs and the ranks that do not have what most
// have (of which rank() is the first; -1 where no value is that of more ranks than any other).
// Collective: every rank passes the same tensors.
void check_replicas(c10d::ProcessGroup& group, const std::vector<NamedTensor>& tensors,
                    std::uint64_t sequence);

}  // namespace thinwire::detail
