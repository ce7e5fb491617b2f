// What a rank tells the others of itself before they make a group.
#pragma once

#include <chrono>
#include <string>

#include "thinwire/launch/enrolment.h"
#include "thinwire/launch/world.h"

namespace thinwire::launch {

// Its own mistakes are told too, so that they do not wait for it.
Enrolment describe(const RankEnv& ranks, const std::string& host, const InitOptions& options,
                   std::chrono::milliseconds timeout);

// The timeout that the options or the environment ask for. Before the variables are known to be
// well formed: a rank whose own are not still joins, in order to tell the others.
std::chrono::milliseconds timeout_of(const InitOptions& options);

}  // namespace thinwire::launch
