// Ranks that have ended in good order, or by an error of their own, are not dead or hung.
#pragma once

#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace thinwire::comm {

// Leaves word for the other ranks of the group that this one takes part in nothing more that its
// caller does, and why: "it ended its training after 12 steps". raise_collective_failure() tells
// those who still wait. Does not wait for anybody; never throws.
void say_departure(const c10d::ProcessGroup& group, const std::string& reason) noexcept;

// Takes back what this rank has said: it begins anew. Never throws.
void take_back_departure(const c10d::ProcessGroup& group) noexcept;

// What say_departure() left of `rank`; empty where it said nothing, or the store does not answer.
std::string departure_of(const c10d::ProcessGroup& group, int rank) noexcept;

}  // namespace thinwire::comm
