// Which rank holds which experts: contiguous blocks, the first (experts mod ranks) ranks hold one
// more. Ranks without experts are fine.
#pragma once

#include <cstdint>

#include "thinwire/common/error.h"

namespace thinwire::moe {

struct ExpertPlacement {
  std::int64_t experts = 1;
  int ranks = 1;

  ExpertPlacement(std::int64_t expert_count, int rank_count)
      : experts(expert_count), ranks(rank_count) {
    check(experts >= 1, "a mixture needs at least one expert, got ", experts);
    check(ranks >= 1, "a group needs at least one rank, got ", ranks);
  }

  std::int64_t count(int rank) const { return first(rank + 1) - first(rank); }
  // First expert of a rank; first(ranks) = experts.
  std::int64_t first(int rank) const {
    const std::int64_t more = experts % ranks;
    return rank * (experts / ranks) + (rank < more ? rank : more);
  }
};

}  // namespace thinwire::moe
