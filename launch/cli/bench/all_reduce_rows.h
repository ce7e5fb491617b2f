// What the rows of `thinwire bench all_reduce` have in common, whatever is averaged.
#pragma once

#include <cstdint>
#include <string>

#include <c10/core/ScalarType.h>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/launch/cli/bench/group.h"
#include "thinwire/launch/cli/bench/options.h"
#include "thinwire/launch/cli/bench/report.h"
#include "thinwire/launch/cli/replay/recording.h"

namespace thinwire::launch {

// A row without its measurements.
BenchRow all_reduce_row(const BenchGroup& group, std::int64_t numel, at::ScalarType type,
                        std::string codec, std::string strategy);

// "auto:" stands before what the selector chose, "none" for not to compress.
std::string name_of_way(const comm::LayerStrategy& way, bool automatic);

// Measures recorded gradients of about so many bytes with the backend's own all_reduce,
// uncompressed and with every codec; layers that training would not compress are not compressed
// here. Adds to `rows`. Collective.
void bench_recorded(const BenchGroup& group, const BenchOptions& options,
                    const Recording& recording, const comm::AveragerOptions& averager,
                    std::int64_t bytes, BenchTable& table, std::vector<BenchRow>& rows);

}  // namespace thinwire::launch
