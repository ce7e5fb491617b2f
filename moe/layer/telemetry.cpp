#include "thinwire/moe/layer/telemetry.h"

#include <algorithm>

#include "thinwire/common/error.h"

namespace thinwire::moe {
namespace {

constexpr const char* kLegNames[kLegs] = {"dispatch", "combine", "combine_backward",
                                          "dispatch_backward"};

}  // namespace

const char* name_of(Leg leg) {
  return kLegNames[static_cast<int>(leg)];
}

double MoESummary::rows_fraction() const {
  if (rows == 0) return 1;
  return static_cast<double>(merged_rows - shared_rows) / static_cast<double>(rows);
}

double MoESummary::mean_radius() const {
  return radius_rows == 0 ? 0 : radius_sum / static_cast<double>(radius_rows);
}

double MoESummary::settled_fraction() const {
  if (spectral_legs == 0) return 0;
  return static_cast<double>(settled_legs) / static_cast<double>(spectral_legs);
}

double MoESummary::ratio() const {
  const std::int64_t sent = wire.total();
  return sent == 0 ? 1 : static_cast<double>(uncompressed_bytes) / static_cast<double>(sent);
}

MoESummary& MoESummary::operator+=(const MoESummary& other) {
  passes += other.passes;
  merged_passes += other.merged_passes;
  refused_passes += other.refused_passes;
  tokens += other.tokens;
  rows += other.rows;
  merged_rows += other.merged_rows;
  shared_rows += other.shared_rows;
  worst_radius = std::max(worst_radius, other.worst_radius);
  radius_sum += other.radius_sum;
  radius_rows += other.radius_rows;
  spectral_legs += other.spectral_legs;
  settled_legs += other.settled_legs;
  wire += other.wire;
  uncompressed_bytes += other.uncompressed_bytes;
  seconds += other.seconds;
  return *this;
}

MetricFields metric_fields(const MoESummary& summary) {
  MetricFields fields = {{"moe_passes", summary.passes},
                         {"moe_merged_passes", summary.merged_passes},
                         {"moe_refused_passes", summary.refused_passes},
                         {"moe_rows", summary.rows},
                         {"moe_merged_rows", summary.merged_rows},
                         {"moe_shared_rows", summary.shared_rows},
                         {"moe_rows_fraction", summary.rows_fraction()},
                         {"moe_worst_radius", summary.worst_radius},
                         {"moe_mean_radius", summary.mean_radius()},
                         {"moe_settled_fraction", summary.settled_fraction()}};
  for (int leg = 0; leg < kLegs; ++leg) {
    fields.emplace_back(concat("moe_bytes_", kLegNames[leg]),
                        summary.wire.rows[static_cast<std::size_t>(leg)]);
  }
  fields.emplace_back("moe_bytes_counts", summary.wire.counts);
  fields.emplace_back("moe_bytes_bases", summary.wire.bases);
  fields.emplace_back("moe_bytes_replicas", summary.wire.replicas);
  fields.emplace_back("moe_bytes_uncompressed", summary.uncompressed_bytes);
  fields.emplace_back("gate_seconds", summary.seconds.gate);
  fields.emplace_back("hash_seconds", summary.seconds.hash);
  fields.emplace_back("code_seconds", summary.seconds.code);
  fields.emplace_back("exchange_seconds", summary.seconds.exchange);
  fields.emplace_back("expert_seconds", summary.seconds.experts);
  return fields;
}

std::string describe(const MoESummary& summary, std::int64_t steps) {
  if (summary.passes == 0 || steps == 0) return {};
  const auto per_step = [&](auto value, double unit) {
    return fixed_text(static_cast<double>(value) / unit / static_cast<double>(steps), 3);
  };
  std::string text = concat(
      "  expert rows       ", fixed_text(100 * summary.rows_fraction(), 1), " % of ", summary.rows,
      " rows dispatched; merged in ", summary.merged_passes, " of ", summary.passes,
      " passes, refused by the guard in ", summary.refused_passes, "\n  relative radius   worst ",
      fixed_text(summary.worst_radius, 3), ", mean ", fixed_text(summary.mean_radius(), 4),
      summary.spectral_legs == 0
          ? std::string()
          : concat("\n  spectral rows     in ", fixed_text(100 * summary.settled_fraction(), 1),
                   " % of the legs, else not yet settled"),
      "\n  expert bytes      ", per_step(summary.wire.total(), 1e6), " MB a step (",
      fixed_text(summary.ratio(), 2), "x less than uncompressed):");
  for (int leg = 0; leg < kLegs; ++leg) {
    text += concat(leg == 0 ? " " : ", ", kLegNames[leg], " ",
                   per_step(summary.wire.rows[static_cast<std::size_t>(leg)], 1e6));
  }
  text += concat(
      ", counts ", per_step(summary.wire.counts, 1e6), ", bases ",
      per_step(summary.wire.bases, 1e6), ", replicas ", per_step(summary.wire.replicas, 1e6),
      "\n  expert time       ms a step: gate ", per_step(summary.seconds.gate, 1e-3), ", hash ",
      per_step(summary.seconds.hash, 1e-3), ", code ", per_step(summary.seconds.code, 1e-3),
      ", exchange ", per_step(summary.seconds.exchange, 1e-3), ", experts ",
      per_step(summary.seconds.experts, 1e-3), "\n");
  return text;
}

}  // namespace thinwire::moe
