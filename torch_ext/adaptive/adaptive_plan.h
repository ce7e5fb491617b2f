// L-GreCo in training: the plan that follows the gradients.
#pragma once

#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/link/link_model.h"
#include "thinwire/compressors/allocation/curves.h"
#include "thinwire/compressors/allocation/plan_file.h"
#include "thinwire/compressors/allocation/schedule.h"
#include "thinwire/torch_ext/adaptive/gradient_statistics.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire {

// What adapting the plan has cost one rank so far.
struct AdaptationSummary {
  std::int64_t plans = 0;         // that took effect
  double statistics_seconds = 0;  // adding up gradients
  double exchange_seconds = 0;    // averaging them over the ranks and sharing the curves
  double curve_seconds = 0;       // measuring the curves of this rank's layers, on a thread apart
  double solve_seconds = 0;       // solving, on a thread apart
  double wait_seconds = 0;        // waiting for that thread: zero where the lag suffices
  std::uint64_t sent_bytes = 0;   // of the exchange
  double training_seconds = 0;    // from the first bucket to the end of the last finished step

  double seconds() const {
    return statistics_seconds + exchange_seconds + curve_seconds + solve_seconds;
  }
  // Part of the training time; the work of the thread apart counts in full.
  double share() const { return training_seconds > 0 ? seconds() / training_seconds : 0; }
};

// What is under way of the next plan on one rank, from the first step of its window to the switch:
// statistics, then the curves that were made of them, which are those of all ranks.
struct PlanUnderWay {
  GradientStatistics::Saved statistics;  // without values once there are curves
  std::vector<double> curves;
  // What must be equal on all ranks.
  std::string text() const;
};

// Watches the gradients, makes a new plan every period and switches to it at the same step on all
// ranks, see lgreco::Schedule. Every rank makes the same calls for the same steps, on the thread
// that owns the group; begin_step() and close_window() are collective.
//
// Markov et al., "L-GreCo", MLSys 2024. The statistics are those of the local gradients before
// error feedback, whose residual would drown them.
class AdaptivePlan {
 public:
  // `reference`: the settings of all layers to begin with. Collective for objective=time, which
  // needs codec speeds that all ranks share, and `link`.
  AdaptivePlan(c10::intrusive_ptr<c10d::ProcessGroup> group, AdaptiveCompression adaptive,
               comm::Plan reference, std::int64_t least_warmup,
               const std::optional<comm::LinkModel>& link);
  ~AdaptivePlan();

  const lgreco::Schedule& schedule() const { return schedule_; }

  // Before the first bucket of a step; calling it again for the same step does nothing. True if the
  // plan changed. Throws InternalError on every rank if the ranks solved differently.
  bool begin_step(std::int64_t step);
  // Every bucket, before it is averaged.
  void observe(const comm::Bucket& bucket, std::int64_t step);
  // After the last bucket of a step.
  void finish_step(std::int64_t step);
  // After the last step of a window: averages the statistics and begins to measure the curves.
  void close_window();

  // Throws InvalidArgument unless the plan is for these layers, with settings that exist.
  void check_fits(const lgreco::SolvedPlan& allocation) const;
  void check_fits(const PlanUnderWay& next) const;
  // Goes on with a plan that was solved before and fits; with null, from the start. Only between
  // steps. Without `next` a window is not used unless it is seen from its first step: the next plan
  // may come a period later.
  void restore(std::shared_ptr<const lgreco::SolvedPlan> allocation,
               std::optional<PlanUnderWay> next);

  const comm::Plan& plan() const { return plan_; }
  // What the last plan was solved from and for; none before the first.
  const std::shared_ptr<const lgreco::SolvedPlan>& allocation() const { return allocation_; }
  // Between steps; nothing between a switch and the next window.
  std::optional<PlanUnderWay> under_way() const;
  const AdaptationSummary& summary() const { return summary_; }
  const GradientStatistics& statistics() const { return statistics_; }

 private:
  struct Solution {
    lgreco::SolvedPlan plan;
    double seconds = 0;
  };
  // For each layer the squared norm, then the squared errors of its candidates.
  using CurveTable = std::vector<double>;

  void begin_to_measure();
  void begin_to_solve();
  void gather_curves();
  bool switch_plan(std::int64_t step);
  CurveTable measure_own_layers() const;
  Solution solve() const;
  void apply(const lgreco::SolvedPlan& allocation);
  void report(const lgreco::SolvedPlan& allocation, std::size_t changed, std::int64_t step);
  std::span<const double> curve_in(const CurveTable& table, std::size_t layer) const;
  // The result of the thread apart; a failure there ends all ranks.
  template <typename Result>
  Result result_of(std::future<Result>& future, const char* what);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const AdaptiveCompression adaptive_;
  const lgreco::Schedule schedule_;
  const std::map<std::size_t, lgreco::CurveCosts> costs_;  // by bytes of an element
  GradientStatistics statistics_;
  std::vector<std::size_t> table_begin_;  // of each layer's curve; one more for the end
  // Kept, as the settings chosen so far, because the averager may point to their codecs.
  const comm::Plan reference_;
  comm::Plan plan_;
  std::map<std::string, comm::LayerSetting> settings_;  // by candidate
  std::shared_ptr<const lgreco::SolvedPlan> allocation_;
  std::set<std::string> warned_;
  std::int64_t begun_step_ = -1;
  bool window_is_whole_ = false;
  std::uint64_t round_ = 0;
  CurveTable curves_;  // that the next plan is solved from, until it takes effect
  AdaptationSummary summary_;
  // Last: their threads use what stands above.
  std::future<CurveTable> measuring_;
  std::future<Solution> solving_;
};

}  // namespace thinwire
