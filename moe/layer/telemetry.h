// What the passes of one or several layers did and cost, for logs and for the communication
// summary at the end of a run.
#pragma once

#include <cstdint>
#include <string>

#include "thinwire/common/metrics.h"
#include "thinwire/moe/rows/leg_bytes.h"

namespace thinwire::moe {

// Sums over the training passes of one rank since its layer was made.
struct MoESummary {
  std::int64_t passes = 0;
  std::int64_t merged_passes = 0;   // in which similar rows were merged
  std::int64_t refused_passes = 0;  // in which the break-even guard sent all rows exactly
  std::int64_t tokens = 0;
  std::int64_t rows = 0;         // (token, expert) pairs
  std::int64_t merged_rows = 0;  // what merging left of them
  std::int64_t shared_rows = 0;  // of these, saved because another expert of a rank got the row
  double worst_radius = 0;       // largest |x - m| / |x|
  double radius_sum = 0;         // over all rows of merged passes
  std::int64_t radius_rows = 0;
  std::int64_t spectral_legs = 0;  // legs of passes with a spectral codec
  std::int64_t settled_legs = 0;   // of these, those that had a basis to use
  LegBytes wire;
  // What the same passes would have sent without merging, sharing and codecs: rows, and what
  // replicas add up.
  std::int64_t uncompressed_bytes = 0;
  MoESeconds seconds;

  // Rows dispatched over rows that the router asked for; 1 without rows.
  double rows_fraction() const;
  double mean_radius() const;
  // Share of the spectral legs that had a basis to use; 0 without such legs.
  double settled_fraction() const;
  // Uncompressed bytes over bytes sent; 1 where nothing was sent.
  double ratio() const;
  // Another layer of the same rank, or another rank.
  MoESummary& operator+=(const MoESummary& other);
};

// moe_passes, moe_rows_fraction, moe_bytes_dispatch, ... for a metrics log; totals, not means.
MetricFields metric_fields(const MoESummary& summary);
// Lines for people, of `steps` training steps; empty without passes.
std::string describe(const MoESummary& summary, std::int64_t steps);

}  // namespace thinwire::moe
