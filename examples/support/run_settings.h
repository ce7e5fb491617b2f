// Settings of a run that the training examples work out alike.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "thinwire/launch/world.h"

namespace thinwire::examples {

// Threads of one rank: as many as asked for, or for 0 the host's cores shared among its ranks.
int threads_of_rank(const launch::World& world, int asked);

// The canonical text of the compression in force: what was asked for, else THINWIRE_COMPRESSION,
// else "none". Logs of equal runs are equal.
std::string compression_text(const std::string& asked);

// The numbers of this rank's share of `count` items, every world-size-th one; none where there are
// fewer items than ranks. int64.
at::Tensor share_of_rank(const launch::World& world, std::int64_t count);

}  // namespace thinwire::examples
