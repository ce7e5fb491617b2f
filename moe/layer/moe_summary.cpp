// What a layer did, added up over its passes.

#include <algorithm>

#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {

void MoELayer::count(const RouteRequest& request, const RowRoutes& routes,
                     const TokenLayout& layout, const MoECounters& counters) {
  if (!request.training) {
    evaluation_wire_ += counters.wire;
    evaluation_seconds_.code += counters.seconds.code;
    evaluation_seconds_.exchange += counters.seconds.exchange;
    return;
  }
  ++summary_.passes;
  summary_.tokens += counters.tokens;
  summary_.rows += counters.rows;
  summary_.merged_rows += counters.dedup.rows_sent;
  summary_.shared_rows += counters.dedup.rows_sent - routes.sent_rows;
  if (counters.dedup.refused_by_guard) ++summary_.refused_passes;
  if (counters.dedup.merged) {
    ++summary_.merged_passes;
    summary_.worst_radius = std::max(summary_.worst_radius, counters.dedup.worst_radius);
    summary_.radius_sum += counters.dedup.mean_radius * static_cast<double>(counters.rows);
    summary_.radius_rows += counters.rows;
  }
  const int legs = routes.needs_input_gradient ? kLegs : kLegs - 1;
  for (int leg = 0; leg < legs; ++leg) {
    const RowCodec& codec = routes.codecs[static_cast<std::size_t>(leg)];
    if (codec.spectral() == nullptr) continue;
    ++summary_.spectral_legs;
    if (codec.basis() != nullptr) ++summary_.settled_legs;
  }
  const ExpertPlacement& placement = dispatcher_->placement();
  const int rank = dispatcher_->rank();
  const auto first = [&](int of) {
    return layout.expert_begin[static_cast<std::size_t>(placement.first(of))];
  };
  const std::int64_t remote = counters.rows - (first(rank + 1) - first(rank));
  summary_.uncompressed_bytes += remote * legs * options_.router.dim *
                                 static_cast<std::int64_t>(c10::elementSize(request.dtype));
  summary_.seconds.gate += counters.seconds.gate;
  summary_.seconds.hash += counters.seconds.hash;
  summary_.seconds.experts += counters.seconds.experts;
}

MoESummary MoELayer::summary() const {
  MoESummary all = summary_;
  all.wire = dispatcher_->wire() - evaluation_wire_;
  all.uncompressed_bytes += all.wire.replicas;
  all.seconds += dispatcher_->seconds() - evaluation_seconds_;
  return all;
}

}  // namespace thinwire::moe
