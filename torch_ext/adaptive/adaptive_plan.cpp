#include "thinwire/torch_ext/adaptive/adaptive_plan.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/shape.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/allocation/plan_table.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/torch_ext/adaptive/candidate_costs.h"

namespace thinwire {
namespace {

// Adds the time of its life to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += seconds_since(begin_); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point begin_ = Clock::now();
};

// The specs of all candidates of all layers, each once, in order.
std::vector<Spec> all_candidates(const AdaptiveCompression& adaptive) {
  std::map<std::string, Spec> specs;
  for (const LayerInfo& layer : adaptive.layers) {
    for (const Spec& spec : lgreco::candidate_set(adaptive.policy, layer.shape).specs) {
      specs.emplace(spec.str(), spec);
    }
  }
  std::vector<Spec> list;
  list.reserve(specs.size());
  for (auto& [text, spec] : specs) list.push_back(std::move(spec));
  return list;
}

// The cost of every candidate: the link model's, where it has measured the codec, else rank 0's
// measurement, so that all ranks reckon with the same numbers.
std::map<std::string, comm::CodecCost> agreed_codec_costs(c10d::ProcessGroup& group,
                                                          const std::vector<Spec>& specs,
                                                          const comm::LinkModel& link) {
  std::vector<comm::CodecCost> costs(specs.size());
  if (group.getRank() == 0) {
    comm::guard(group, "measuring the codecs' speeds", 0, [&] {
      for (std::size_t i = 0; i < specs.size(); ++i) {
        const bool known = link.codec(make_codec(specs[i])->spec()) != nullptr;
        costs[i] = known ? codec_cost(specs[i], link) : measured_codec_cost(specs[i]);
      }
    });
  }
  static_assert(sizeof(comm::CodecCost) == 3 * sizeof(double));
  // A tensor of its own: where another rank fails, the wait ends before the broadcast does.
  std::vector<at::Tensor> tensors = {
      at::empty({static_cast<std::int64_t>(3 * costs.size())}, at::kDouble)};
  std::memcpy(tensors[0].mutable_data_ptr(), costs.data(), tensors[0].nbytes());
  if (group.getSize() > 1 && !costs.empty()) {
    comm::run_collective(group, "broadcast of the codecs' speeds", 0,
                         [&] { return group.broadcast(tensors); });
  }
  std::memcpy(costs.data(), tensors[0].const_data_ptr(), tensors[0].nbytes());
  std::map<std::string, comm::CodecCost> result;
  for (std::size_t i = 0; i < specs.size(); ++i) result.emplace(specs[i].str(), costs[i]);
  return result;
}

// For the layers of one element size.
lgreco::CurveCosts costs_of(c10d::ProcessGroup& group, const AdaptiveCompression& adaptive,
                            std::size_t element_bytes, const std::optional<comm::LinkModel>& link,
                            const std::map<std::string, comm::CodecCost>& codecs) {
  const int world = group.getSize();
  lgreco::CurveCosts costs;
  costs.bytes = [world, element_bytes](const Spec& spec, std::span<const std::int64_t> shape) {
    return candidate_bytes(spec, shape, world, element_bytes);
  };
  if (adaptive.policy.objective == lgreco::Objective::kTime) {
    costs.seconds = [world, bytes = costs.bytes, backend = link->backend(comm::backend_name(group)),
                     codecs](const Spec& spec, std::span<const std::int64_t> shape) {
      return wire_seconds(bytes(spec, shape), backend) +
             coding_seconds(spec, numel_of(shape), codecs.at(spec.str()), world);
    };
  }
  return costs;
}

std::map<std::size_t, lgreco::CurveCosts> all_costs(c10d::ProcessGroup& group,
                                                    const AdaptiveCompression& adaptive,
                                                    const std::optional<comm::LinkModel>& link) {
  std::map<std::string, comm::CodecCost> codecs;
  if (adaptive.policy.objective == lgreco::Objective::kTime) {
    THINWIRE_ASSERT(link.has_value());
    codecs = agreed_codec_costs(group, all_candidates(adaptive), *link);
  }
  std::map<std::size_t, lgreco::CurveCosts> costs;
  for (const LayerInfo& layer : adaptive.layers) {
    if (costs.contains(layer.element_bytes)) continue;
    costs[layer.element_bytes] = costs_of(group, adaptive, layer.element_bytes, link, codecs);
  }
  return costs;
}

}  // namespace

AdaptivePlan::AdaptivePlan(c10::intrusive_ptr<c10d::ProcessGroup> group,
                           AdaptiveCompression adaptive, comm::Plan reference,
                           std::int64_t least_warmup, const std::optional<comm::LinkModel>& link)
    : group_(std::move(group)),
      adaptive_(std::move(adaptive)),
      schedule_(adaptive_.policy, least_warmup),
      costs_(all_costs(*group_, adaptive_, link)),
      statistics_(adaptive_.layers, group_->getRank(), group_->getSize()),
      reference_(std::move(reference)),
      plan_(reference_) {
  table_begin_.push_back(0);
  for (const LayerInfo& layer : adaptive_.layers) {
    const auto set = lgreco::candidate_set(adaptive_.policy, layer.shape);
    table_begin_.push_back(table_begin_.back() + 1 + set.specs.size());
  }
}

AdaptivePlan::~AdaptivePlan() = default;

bool AdaptivePlan::begin_step(std::int64_t step) {
  if (step == begun_step_ || adaptive_.layers.empty()) return false;
  begun_step_ = step;
  return comm::guard(*group_, "planning the compression", round_, [&] {
    if (schedule_.gathers_before(step)) gather_curves();
    const bool changed = schedule_.switches_before(step) && switch_plan(step);
    if (schedule_.opens_window(step)) {
      statistics_.reset();
      window_is_whole_ = true;
    }
    return changed;
  });
}

void AdaptivePlan::observe(const comm::Bucket& bucket, std::int64_t step) {
  if (!schedule_.observes(step)) return;
  Stopwatch watch(summary_.statistics_seconds);
  comm::guard(*group_, "taking statistics of the gradients", round_,
              [&] { statistics_.add(bucket); });
}

void AdaptivePlan::finish_step(std::int64_t step) {
  if (schedule_.observes(step)) statistics_.finish_step();
}

void AdaptivePlan::close_window() {
  if (!window_is_whole_) statistics_.release();
  if (adaptive_.layers.empty() || !window_is_whole_) return;
  ++round_;
  comm::guard(*group_, "sharing statistics of the gradients", round_, [&] {
    {
      Stopwatch watch(summary_.exchange_seconds);
      summary_.sent_bytes += statistics_.exchange(*group_, round_);
    }
    if (statistics_.left_out() > 0) {
      log::warn("lgreco: ", statistics_.left_out(), " gradients with NaN or infinity were left ",
                "out of the statistics for plan ", round_);
    }
    begin_to_measure();
  });
}

void AdaptivePlan::begin_to_measure() {
  measuring_ = std::async(std::launch::async, [this] { return measure_own_layers(); });
}

void AdaptivePlan::begin_to_solve() {
  solving_ = std::async(std::launch::async, [this] { return solve(); });
}

template <typename Result>
Result AdaptivePlan::result_of(std::future<Result>& future, const char* what) {
  Stopwatch watch(summary_.wait_seconds);
  return comm::guard(*group_, what, round_, [&] { return future.get(); });
}

AdaptivePlan::CurveTable AdaptivePlan::measure_own_layers() const {
  CurveTable table(table_begin_.back(), 0.0);
  const auto begin = Clock::now();
  for (std::size_t i = 0; i < adaptive_.layers.size(); ++i) {
    if (statistics_.owner(i) != group_->getRank()) continue;
    const LayerInfo& layer = adaptive_.layers[i];
    const auto values = statistics_.values(i);
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    double* row = table.data() + table_begin_[i];
    if (!finite) {
      // Sums that overflowed: everyone sees it in the shared table.
      *row = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    const auto measured = lgreco::measure_curve(layer.name, values, layer.shape, adaptive_.policy);
    *row = measured.squared_norm;
    std::copy(measured.squared_errors.begin(), measured.squared_errors.end(), row + 1);
  }
  // This rank's own time, which it keeps to itself.
  table.push_back(seconds_since(begin));
  return table;
}

std::span<const double> AdaptivePlan::curve_in(const CurveTable& table, std::size_t layer) const {
  return std::span(table).subspan(table_begin_[layer],
                                  table_begin_[layer + 1] - table_begin_[layer]);
}

void AdaptivePlan::gather_curves() {
  if (!measuring_.valid()) return;  // training was resumed after the window began
  CurveTable table = result_of(measuring_, "measuring the gradients' curves");
  statistics_.release();
  summary_.curve_seconds += table.back();
  table.pop_back();
  if (group_->getSize() > 1) {
    Stopwatch watch(summary_.exchange_seconds);
    // Each number comes from one rank, all others add zero: the sum is that number, bit for bit.
    // In a tensor of its own, as above.
    std::vector<at::Tensor> tensors = {at::tensor(table, at::kDouble)};
    comm::run_collective(*group_, "exchange of the gradients' curves", round_,
                         [&] { return group_->allreduce(tensors); });
    std::copy_n(tensors[0].const_data_ptr<double>(), table.size(), table.begin());
    summary_.sent_bytes += static_cast<std::uint64_t>(comm::sent_bytes(
        comm::Collective::kAllReduce, static_cast<double>(tensors[0].nbytes()), group_->getSize()));
  }
  const bool finite =
      std::all_of(table.begin(), table.end(), [](double x) { return std::isfinite(x); });
  if (!finite) {
    if (group_->getRank() == 0) {
      log::warn("lgreco: the summed gradients overflow float32; the plan stays as it is");
    }
    return;
  }
  curves_ = std::move(table);
  begin_to_solve();
}

AdaptivePlan::Solution AdaptivePlan::solve() const {
  const auto begin = Clock::now();
  std::vector<lgreco::Layer> layers;
  for (std::size_t i = 0; i < adaptive_.layers.size(); ++i) {
    const auto row = curve_in(curves_, i);
    const LayerInfo& layer = adaptive_.layers[i];
    layers.push_back(lgreco::curve_of(layer.name, layer.shape, adaptive_.policy,
                                      {row[0], {row.begin() + 1, row.end()}},
                                      costs_.at(layer.element_bytes)));
  }
  const lgreco::AllocationOptions options = adaptive_.policy.allocation();
  Solution solution{lgreco::make_plan(layers, options, lgreco::allocate(layers, options)), 0};
  solution.seconds = seconds_since(begin);
  return solution;
}

bool AdaptivePlan::switch_plan(std::int64_t step) {
  if (!solving_.valid()) return false;
  Solution solution = result_of(solving_, "solving for a plan");
  curves_.clear();
  summary_.solve_seconds += solution.seconds;
  summary_.sent_bytes += comm::HashAgreement::sent_bytes(group_->getSize());
  comm::HashAgreement agreement(*group_, round_, lgreco::plan_hash(solution.plan));
  if (!agreement.wait()) {
    throw InternalError(concat("step ", step, ": the ranks solved plan ", round_,
                               " differently; this rank's has hash ",
                               lgreco::plan_hash(solution.plan)));
  }
  const comm::Plan before = plan_;
  apply(solution.plan);
  std::size_t changed = 0;
  for (const LayerInfo& layer : adaptive_.layers) {
    changed += before.of(layer.name).text() != plan_.of(layer.name).text();
  }
  ++summary_.plans;
  allocation_ = std::make_shared<const lgreco::SolvedPlan>(std::move(solution.plan));
  if (group_->getRank() == 0) report(*allocation_, changed, step);
  return true;
}

void AdaptivePlan::check_fits(const lgreco::SolvedPlan& allocation) const {
  const auto same = [](const LayerInfo& layer, const lgreco::PlannedLayer& planned) {
    return layer.name == planned.name;
  };
  check(std::ranges::equal(adaptive_.layers, allocation.layers, same), "the saved plan is for ",
        allocation.layers.size(), " layers",
        allocation.layers.empty() ? "" : concat(", the first '", allocation.layers[0].name, "'"),
        "; lgreco(...) is to plan ", adaptive_.layers.size(), " others");
  for (const auto& layer : allocation.layers) adaptive_.setting(layer.chosen.spec);
}

void AdaptivePlan::check_fits(const PlanUnderWay& next) const {
  if (next.curves.empty()) return statistics_.check_fits(next.statistics);
  check(next.statistics.values.empty() && next.curves.size() == table_begin_.back(),
        "the saved curves are ", next.curves.size(), " numbers, those of these layers are ",
        table_begin_.back());
}

std::optional<PlanUnderWay> AdaptivePlan::under_way() const {
  if (!curves_.empty()) return PlanUnderWay{{}, curves_};
  if (statistics_.empty() || !window_is_whole_) return std::nullopt;
  return PlanUnderWay{statistics_.saved(), {}};
}

std::string PlanUnderWay::text() const {
  return concat(statistics.steps, " steps, ", statistics.holds_means ? "means" : "sums", ", ",
                curves.size(), " curves of hash ",
                XXH3_64bits(curves.data(), curves.size() * sizeof(double)));
}

void AdaptivePlan::restore(std::shared_ptr<const lgreco::SolvedPlan> allocation,
                           std::optional<PlanUnderWay> next) {
  if (measuring_.valid()) measuring_.wait();
  if (solving_.valid()) solving_.wait();
  measuring_ = {};
  solving_ = {};
  statistics_.reset();
  curves_.clear();
  begun_step_ = -1;
  window_is_whole_ = false;
  plan_ = reference_;
  allocation_ = std::move(allocation);
  if (allocation_) apply(*allocation_);
  if (!next) return;
  curves_ = std::move(next->curves);
  if (!curves_.empty()) return begin_to_solve();
  window_is_whole_ = true;
  const bool holds_means = next->statistics.holds_means;
  statistics_.restore(std::move(next->statistics));
  if (holds_means) begin_to_measure();
}

void AdaptivePlan::apply(const lgreco::SolvedPlan& allocation) {
  for (const lgreco::PlannedLayer& layer : allocation.layers) {
    const auto known = settings_.find(layer.chosen.spec);
    if (known != settings_.end()) {
      plan_.set(layer.name, known->second);
      continue;
    }
    comm::LayerSetting setting = adaptive_.setting(layer.chosen.spec);
    setting.may_be_skipped = false;
    plan_.set(layer.name, settings_.emplace(layer.chosen.spec, setting).first->second);
  }
}

void AdaptivePlan::report(const lgreco::SolvedPlan& allocation, std::size_t changed,
                          std::int64_t step) {
  log::info("lgreco: plan ", summary_.plans, " from step ", step, ": ",
            lgreco::plan_summary(allocation), "; ", changed, " of ", allocation.layers.size(),
            " layers changed; ", static_cast<int>(1e3 * summary_.seconds()),
            " ms of statistics and solving so far");
  log::debug("lgreco: plan ", summary_.plans, "\n", lgreco::plan_table(allocation));
  for (const std::string& warning : allocation.warnings) {
    if (warned_.insert(warning).second) log::warn("lgreco: ", warning);
  }
}

}  // namespace thinwire
