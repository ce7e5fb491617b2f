// What a layer did, added up over its passes.

#include <algorithm>

#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {

void MoELayer::count(const DispatchSummary& before, const RouteRequest& request,
                     const RowRoutes& plan, const TokenLayout& layout,
                     const MoECounters& counters) {
  if (!request.training) {
    const DispatchSummary after = exchange_->use();
    evaluation_use_.wire += after.wire - before.wire;
    evaluation_use_.code_seconds += after.code_seconds - before.code_seconds;
    evaluation_use_.wait_seconds += after.wait_seconds - before.wait_seconds;
    return;
  }
  ++summary_.passes;
  summary_.tokens += counters.tokens;
  summary_.rows += counters.rows;
  summary_.merged_rows += counters.dedup.rows_sent;
  summary_.shared_rows += counters.dedup.rows_sent - plan.sent_rows;
  if (counters.dedup.refused_by_guard) ++summary_.refused_passes;
  if (counters.dedup.merged) {
    ++summary_.merged_passes;
    summary_.worst_radius = std::max(summary_.worst_radius, counters.dedup.worst_radius);
    summary_.radius_sum += counters.dedup.mean_radius * static_cast<double>(counters.rows);
    summary_.radius_rows += counters.rows;
  }
  const int legs = plan.needs_input_gradient ? kLegs : kLegs - 1;
  for (int leg = 0; leg < legs; ++leg) {
    const RowCodec& codec = plan.codecs[static_cast<std::size_t>(leg)];
    if (codec.spectral() == nullptr) continue;
    ++summary_.spectral_legs;
    if (codec.basis() != nullptr) ++summary_.settled_legs;
  }
  const ExpertPlacement& placement = exchange_->placement();
  const int rank = exchange_->rank();
  const auto first = [&](int of) {
    return layout.expert_begin[static_cast<std::size_t>(placement.first(of))];
  };
  const std::int64_t remote = counters.rows - (first(rank + 1) - first(rank));
  summary_.uncompressed_bytes += remote * legs * options_.router.dim *
                                 static_cast<std::int64_t>(c10::elementSize(request.dtype));
  summary_.seconds.gate += counters.gate_seconds;
  summary_.seconds.hash += counters.dedup.hash_seconds;
  summary_.seconds.experts += counters.expert_seconds;
}

MoESummary MoELayer::summary() const {
  MoESummary all = summary_;
  const DispatchSummary use = exchange_->use();
  all.wire = use.wire - evaluation_use_.wire;
  all.seconds.code = use.code_seconds - evaluation_use_.code_seconds;
  all.seconds.exchange = use.wait_seconds - evaluation_use_.wait_seconds;
  all.seconds.experts += use.expert_seconds;
  return all;
}

}  // namespace thinwire::moe
