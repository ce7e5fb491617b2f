// LSH-MoE: sending one centroid in place of several similar rows. Liang et al., "LSH-MoE:
// Communication-efficient MoE training via locality-sensitive hashing", NeurIPS 2024
// (arXiv 2411.08446).
//
// Forward, for a row x of cluster c with n members and centroid m = mean of the members:
//   y = E(m) + f · (x - m)          (f: compensation)
// Backward is its exact adjoint with the clusters held fixed. With g the gradient of y,
//   dL/dE(m) = sum of g             (one row per cluster crosses the network)
//   dL/dx    = f · g + (Jᵀ sum of g - f · sum of g) / n
// Rows that are alone in their cluster are sent and computed exactly.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/lsh/cluster.h"
#include "thinwire/moe/router/token_layout.h"
#include "thinwire/moe/rows/row_ops.h"

namespace thinwire::moe {

struct DedupOptions {
  enum class Method {
    kOff,
    // Merges only rows with equal bytes that go to one expert. Outputs and the experts' gradients
    // are exact; equal rows share the mean of their input gradients.
    kDuplicates,
    kLsh
  };
  Method method = Method::kOff;

  int hashes = 6;
  std::int64_t hash_dim = 16;  // 0, or above the width: the full width
  lsh::RotationKind rotation = lsh::RotationKind::kHadamard;
  lsh::ClusterOptions clusters;  // choice of the prefix, radius bound

  // Factor f on the residual, in [0, 1]. Calibrated: the least-squares factor, clamped to [0, 1],
  // from `probes` rows a step and rank that are sent exactly although their cluster is not; 1 until
  // the first probes are back.
  double compensation = 1.0;
  bool calibrate = false;
  int probes = 16;

  // Training steps before the first merge.
  std::int64_t start_after = 0;
  // Whether evaluation merges too. A model that was trained with compensation may need it.
  bool in_evaluation = false;

  // Break-even guard: bytes per second that one rank can send; 0 switches the guard off. Rows go
  // exactly where the predicted saving of time does not exceed the predicted cost of hashing, both
  // computed from these constants alone, so that the decision is reproducible.
  double bandwidth = 0;
  double hash_rate = 1.5e8;    // elements per second that hashing and clustering get through
  double least_saving = 0.02;  // share of the rows; below it merging only costs accuracy
};

// off | duplicates | lsh(hashes=6, hash_dim=16, rotation=hadamard|gaussian, prefix=P | error=X |
// rows=X | fewest=on, radius=0.4, compensation=0..1|calibrated, probes=16, start_after=0,
// evaluation=off, bandwidth=BYTES_PER_SECOND, hash_rate=1.5e8, least_saving=0.02). A radius of 1e30
// is infinite. Throws InvalidArgument.
DedupOptions parse_dedup(const std::string& spec);
// The text from which parse_dedup() makes the same merging.
std::string spec_of(const DedupOptions& options);

// What one merge did, on this rank.
struct MergeSummary {
  bool merged = false;  // false: off, warming up, or refused by the guard
  bool refused_by_guard = false;
  std::int64_t rows = 0;       // before
  std::int64_t rows_sent = 0;  // after
  int prefix = 0;              // hashes that were used
  double worst_radius = 0;     // of |x - m| / |x|
  double mean_radius = 0;
  double relative_error = 0;
  double compensation = 0;  // f of this step
  double hash_seconds = 0;  // hashing and clustering
};

// The rows to send in place of all rows of a layout.
struct MergedRows {
  at::Tensor rows;                        // [clusters, d], sorted by expert; differentiable
  std::vector<std::int64_t> expert_rows;  // [experts]
  std::vector<std::int32_t> cluster;      // [rows of the layout]
  std::vector<std::int32_t> size;         // [clusters]
  // [clusters] equal for clusters of different experts that are one and the same token; ascending
  // within an expert.
  std::vector<std::int64_t> keys;
  // Rows sent exactly although they belong to the cluster of the same position in probe_home.
  std::vector<std::int32_t> probe, probe_home;
  MergeSummary counters;
};

// One layer's merging. Not thread-safe.
class Dedup {
 public:
  Dedup(const DedupOptions& options, std::int64_t dim, std::uint32_t layer, std::uint64_t seed);

  const DedupOptions& options() const { return options_; }

  // tokens: [T, d]. `bytes_per_row`: what one row costs on all legs of a step, for the guard.
  MergedRows merge(const at::Tensor& tokens, const TokenLayout& layout, bool is_training,
                   std::int64_t bytes_per_row);

  // Output of every row, weighted and summed per token: [T, d]. `sent`: what the experts saw of
  // merged.rows; `returned`: what they made of it; weight: [rows]. Differentiable in all of them.
  // Writes the factor that it used to merged.counters.
  at::Tensor expand(const at::Tensor& tokens, const TokenLayout& layout, MergedRows& merged,
                    const at::Tensor& sent, const at::Tensor& returned, const at::Tensor& weight);

  // Calibration: this rank's sums <E(x) - E(m), x - m> and |x - m|² since they were last taken, and
  // the same over all ranks, which set the factor.
  std::array<double, 2> take_sums();
  void add_global_sums(const std::array<double, 2>& sums);
  double compensation() const;

  // Draws new rotations from the next step on; all ranks must do it at the same step.
  void refresh();

  // What the next merges depend on besides the options: steps, rotations, calibration, [4] float64
  // and equal on all ranks; and what the guard expects, [2] float64 and this rank's own, which
  // load_state() sets to what a new rank expects. Both loads throw InvalidArgument for another
  // shape or type.
  at::Tensor state() const;
  at::Tensor guard_state() const;
  void load_state(const at::Tensor& state);
  void load_guard_state(const at::Tensor& state);
  // This rank's sums that no step has used yet.
  const std::array<double, 2>& pending_sums() const { return local_sums_; }
  void add_pending_sums(const std::array<double, 2>& sums);

 private:
  bool guard_refuses(std::int64_t tokens, std::int64_t rows, std::int64_t bytes_per_row);
  void draw_rotations();
  MergedRows unmerged(const at::Tensor& tokens, const TokenLayout& layout) const;
  void measure_probes(const at::Tensor& tokens, const TokenLayout& layout, const MergedRows& merged,
                      const at::Tensor& sent, const at::Tensor& returned);

  DedupOptions options_;
  std::int64_t dim_;
  std::uint32_t layer_;
  std::uint64_t seed_;
  std::uint64_t generation_ = 0;
  std::unique_ptr<lsh::CrossPolytopeHash> hash_;
  std::int64_t steps_ = 0;
  std::array<double, 2> local_sums_{};
  std::array<double, 2> global_sums_{};  // exponentially decaying
  double expected_saving_ = 1.0;         // share of rows that merging saved lately
  std::int64_t refused_ = 0;             // steps since the guard began to refuse
};

}  // namespace thinwire::moe
