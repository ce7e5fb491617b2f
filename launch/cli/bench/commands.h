// The measurements of `thinwire bench`. Each prints its rows on rank 0 as they come and returns
// them; collective.
#pragma once

#include <vector>

#include "thinwire/launch/cli/bench/group.h"
#include "thinwire/launch/cli/bench/options.h"
#include "thinwire/launch/cli/bench/report.h"

namespace thinwire::launch {

// Coding and decoding, without a network; the ranks of a job do it at the same time. First row:
// identity, a copy.
std::vector<BenchRow> bench_codec(const BenchGroup& group, const BenchOptions& options,
                                  BenchTable& table);

// Averaging one tensor, by comm::BucketAverager as training does. First rows: the backend's own
// all_reduce in float32 and in bfloat16, and the averager's uncompressed one. With the strategy
// "auto" `context` receives the link model that chose.
std::vector<BenchRow> bench_all_reduce(const BenchGroup& group, const BenchOptions& options,
                                       BenchTable& table, nlohmann::ordered_json& context);

// Exchanging rows of 1024 elements, as moe::TokenDispatcher dispatches tokens: every rank has as
// many for each rank. First rows: the backend's own all_to_all in float32 and in bfloat16.
std::vector<BenchRow> bench_all_to_all(const BenchGroup& group, const BenchOptions& options,
                                       BenchTable& table);

// The square matrix nearest to `numel` elements from below, as which powersgd sees a tensor:
// 2896 x 2896 for 32 MiB of float32.
std::int64_t square_side(std::int64_t numel);

}  // namespace thinwire::launch
