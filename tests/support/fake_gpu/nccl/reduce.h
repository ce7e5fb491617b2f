// The arithmetic of NCCL's reductions, in the order of ranks.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <span>
#include <vector>

namespace thinwire::fake_gpu {

std::size_t size_of(ncclDataType_t type);

// Whether reduce() knows it.
bool can_reduce(ncclDataType_t type, ncclRedOp_t operation);

// parts[0] (+) parts[1] (+) ..., of equal sizes, into `result`. Halves are added as floats and
// rounded after each addition.
void reduce(const std::vector<std::vector<std::byte>>& parts, ncclDataType_t type,
            ncclRedOp_t operation, std::byte* result);

}  // namespace thinwire::fake_gpu
