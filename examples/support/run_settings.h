// Settings of a run that the training examples work out alike.
#pragma once

#include <string>

#include "thinwire/launch/world.h"

namespace thinwire::examples {

// Threads of one rank: as many as asked for, or for 0 the host's cores shared among its ranks.
int threads_of_rank(const launch::World& world, int asked);

// The canonical text of the compression in force: what was asked for, else THINWIRE_COMPRESSION,
// else "none". Logs of equal runs are equal.
std::string compression_text(const std::string& asked);

}  // namespace thinwire::examples
