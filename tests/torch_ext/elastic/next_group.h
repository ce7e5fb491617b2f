// Groups that ranks of a test go on over.
#pragma once

#include <string>

#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::testing {

inline c10::intrusive_ptr<c10d::ProcessGroup> group_of(const RankContext& ctx,
                                                       const std::string& name, int rank,
                                                       int size) {
  comm::ProcessGroupOptions options;
  options.timeout = std::chrono::seconds(30);
  options.hostname = "127.0.0.1";
  return comm::make_process_group("gloo", c10::make_intrusive<c10d::PrefixStore>(name, ctx.store),
                                  rank, size, options);
}

}  // namespace thinwire::testing
