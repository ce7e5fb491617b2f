#include "thinwire/comm/average/residuals.h"

#include <algorithm>
#include <utility>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire::comm {
namespace {

// The first elements of `values` += factor · more.
void add(std::span<float> values, std::span<const float> more, float factor) {
  kernels::add_scaled(values.data(), more.data(), factor, values.first(more.size()));
}

// sum[i] += factor · more[i] in double precision, of what may still be empty.
void add(std::vector<double>& sum, std::span<const float> more, std::size_t begin, double factor) {
  sum.resize(std::max(sum.size(), begin + more.size()));
  for (std::size_t i = 0; i < more.size(); ++i) sum[begin + i] += factor * double{more[i]};
}

bool is_in_basis(const AveragerState& state, const std::string& name) {
  const auto found = state.bases.find(name);
  return found != state.bases.end() && found->second.holds_residuals;
}

// The residuals that a state holds in bases, as gradients; second ones are part of them.
ErrorFeedback::State out_of_bases(const AveragerState& state, std::size_t world) {
  ErrorFeedback::State residuals;
  SecondResidual second;
  second.load_state(state.second);
  for (auto& [name, layer] : bases_of(state.bases)) {
    const auto found = state.residuals.find(name);
    if (!layer.holds_residuals || found == state.residuals.end()) continue;
    std::vector<float>& residual = residuals[name] = found->second;
    LayerBasis basis = layer;
    bring_out_of(basis, name, residual, second, static_cast<int>(world));
  }
  return residuals;
}

std::vector<float> narrowed(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

}  // namespace

ErrorFeedback::Carried Residuals::correct(std::string_view name, std::span<float> values,
                                          const LayerSetting& setting, const Way& way, int world,
                                          std::int64_t step) {
  const bool uses_momentum = way.compressed && setting.momentum.has_value();
  const bool uses_feedback = way.compressed && setting.uses_feedback();
  if (mark_ > 0) remember(name);
  if (!way.in_basis || !uses_feedback) leave_basis(name, world);
  // Momentum comes first: what is owed must not enter the velocity.
  if (uses_momentum) momentum.correct(name, values, *setting.momentum);
  ErrorFeedback::Carried carried{};
  if (uses_feedback) {
    carried = feedback.carried(name, values.size(), setting.feedback, step);
  } else if (!way.compressed || uses_momentum) {
    add(values, feedback.residual(name), 1);
  }
  if (!uses_momentum) add(values, momentum.residual(name), 1);
  if (way.in_basis) return carried;
  const auto orphans = second.unowned(name, way.owned);
  add_ranges(orphans, static_cast<float>(world), values);
  // What was sent is found by what it leaves of the whole.
  const bool owed_more = !orphans.empty() || !feedback.residual(name).empty();
  if (uses_momentum && owed_more) momentum.set_corrected(name, values);
  return carried;
}

// Before a layer's residuals are read as those of its elements.
void Residuals::leave_basis(std::string_view name, int world) {
  const auto found = bases.find(name);
  if (found == bases.end() || !found->second.holds_residuals) return;
  bring_out_of(found->second, name, feedback.held(name), second, world);
}

bool Residuals::carries(std::string_view name) const {
  return !feedback.residual(name).empty() || !momentum.residual(name).empty() ||
         !second.unowned(name, {}).empty();
}

void Residuals::commit_momentum(std::string_view name, std::span<const float> residual,
                                bool count) {
  if (count) {
    momentum.commit(name, residual);
  } else {
    momentum.abandon(name);
  }
}

void Residuals::commit(std::string_view name, const LayerSetting& setting, const Way& way) {
  const bool uses_momentum = way.compressed && setting.momentum.has_value();
  if (!uses_momentum) momentum.drop(name);
  if (!way.compressed || uses_momentum) feedback.drop(name);
  if (way.in_basis) return;
  second.drop_unowned(name, way.owned);
  const auto basis = bases.find(name);
  if (basis != bases.end()) bases.erase(basis);
}

void Residuals::mark() {
  ++mark_;
  shared_before_ = shared_steps.state();
}

// Whatever a step changes of a layer comes after its correct().
void Residuals::remember(std::string_view name) {
  auto found = before_.find(name);
  if (found == before_.end()) found = before_.emplace(name, Before()).first;
  Before& before = found->second;
  if (std::exchange(before.mark, mark_) == mark_) return;
  const std::span<const float> residual = feedback.residual(name);
  before.has_residual = feedback.state().contains(name);
  before.residual.assign(residual.begin(), residual.end());
  const auto copy_of = [&](const auto& all, auto& copy) {
    const auto entry = all.find(name);
    if (entry == all.end()) {
      copy.reset();
    } else {
      copy = entry->second;
    }
  };
  copy_of(momentum.state(), before.momentum);
  copy_of(warm_starts, before.warm_start);
  copy_of(bases, before.basis);
  const auto ranges = second.state().find(name);
  before.second.clear();
  if (ranges != second.state().end()) before.second = ranges->second;
}

void Residuals::undo() {
  if (mark_ == 0) return;
  ErrorFeedback::State residuals = feedback.state();
  MomentumCorrection::State velocities = momentum.state();
  SecondResidual::State ranges = second.state();
  const auto restore = [](auto& all, const std::string& name, bool existed, const auto& value) {
    all.erase(name);
    if (existed) all.emplace(name, value());
  };
  for (const auto& [layer, kept] : before_) {
    if (kept.mark != mark_) continue;
    const std::string& name = layer;
    const Before& before = kept;
    restore(residuals, name, before.has_residual, [&] { return before.residual; });
    restore(velocities, name, before.momentum.has_value(), [&] { return *before.momentum; });
    restore(ranges, name, !before.second.empty(), [&] { return before.second; });
    restore(warm_starts, name, before.warm_start.has_value(), [&] { return *before.warm_start; });
    restore(bases, name, before.basis.has_value(), [&] { return *before.basis; });
  }
  feedback.load_state(std::move(residuals));
  momentum.load_state(std::move(velocities));
  second.load_state(std::move(ranges));
  shared_steps.load_state(shared_before_);
}

float Residuals::second_decay(const LayerSetting& setting, std::int64_t step) {
  const auto every = setting.feedback.reset_every;
  return every > 0 && step % every == 0 ? 0.0f : static_cast<float>(setting.feedback.decay);
}

AveragerState merge_states(std::span<const AveragerState> of_all_ranks) {
  check(!of_all_ranks.empty(), "there are no states to merge");
  struct Sums {
    std::vector<double> residual, velocity, momentum_residual;
  };
  const double share = 1.0 / static_cast<double>(of_all_ranks.size());
  std::map<std::string, Sums, std::less<>> sums;
  for (const AveragerState& state : of_all_ranks) {
    check(state.warm_starts == of_all_ranks[0].warm_starts,
          "the states are of different steps or jobs: their warm starts differ");
    check(state.bases == of_all_ranks[0].bases,
          "the states are of different steps or jobs: their bases differ");
    for (const auto& [name, values] : state.residuals) {
      if (!is_in_basis(state, name)) add(sums[name].residual, values, 0, share);
    }
    for (const auto& [name, layer] : state.momentum) {
      add(sums[name].velocity, layer.velocity, 0, share);
      add(sums[name].momentum_residual, layer.residual, 0, share);
    }
    for (const auto& [name, residual] : out_of_bases(state, of_all_ranks.size())) {
      add(sums[name].residual, residual, 0, share);
    }
    // The owner holds what the mean lost, not its share of it.
    for (const auto& [name, ranges] : state.second) {
      if (is_in_basis(state, name)) continue;
      for (const auto& range : ranges) {
        add(sums[name].residual, range.values, static_cast<std::size_t>(range.begin), 1.0);
      }
    }
  }
  // A layer has one size on all ranks, and its second residual lies within it.
  for (const AveragerState& state : of_all_ranks) {
    for (const auto& [name, values] : state.residuals) {
      check(values.size() == sums[name].residual.size(), "layer '", name, "' has ", values.size(),
            " elements on one rank and ", sums[name].residual.size(), " on another");
    }
    for (const auto& [name, layer] : state.momentum) {
      check(layer.velocity.size() == sums[name].velocity.size(), "layer '", name, "' has ",
            layer.velocity.size(), " elements on one rank and ", sums[name].velocity.size(),
            " on another");
    }
  }
  AveragerState merged;
  merged.warm_starts = of_all_ranks[0].warm_starts;
  merged.shared_steps = of_all_ranks[0].shared_steps;
  merged.bases = of_all_ranks[0].bases;
  for (auto& [name, layer] : merged.bases) layer.holds_residuals = false;
  for (const auto& [name, sum] : sums) {
    if (!sum.residual.empty()) merged.residuals[name] = narrowed(sum.residual);
    if (!sum.velocity.empty()) {
      merged.momentum[name] = {narrowed(sum.velocity), narrowed(sum.momentum_residual)};
    }
  }
  return merged;
}

AveragerState for_world(AveragerState state, int world) {
  for (auto& [name, residual] : out_of_bases(state, static_cast<std::size_t>(world))) {
    state.residuals[name] = std::move(residual);
    state.second.erase(name);
  }
  for (auto& [name, layer] : state.bases) layer.holds_residuals = false;
  return state;
}

void check_fits(const AveragerState& state,
                const std::map<std::string, std::int64_t, std::less<>>& numel_of_layer) {
  const auto numel = [&](const std::string& name) {
    const auto found = numel_of_layer.find(name);
    check(found != numel_of_layer.end(), "the state is of another model: this one has no layer '",
          name, "'");
    return static_cast<std::size_t>(found->second);
  };
  const auto expect = [&](const std::string& name, const char* what, std::size_t size) {
    check(size == numel(name), "the state's ", what, " of '", name, "' has ", size,
          " elements, the layer ", numel(name));
  };
  for (const auto& [name, values] : state.residuals) expect(name, "residual", values.size());
  for (const auto& [name, layer] : state.momentum) {
    expect(name, "velocity", layer.velocity.size());
    expect(name, "residual of momentum", layer.residual.size());
  }
  for (const auto& [name, ranges] : state.second) {
    for (const auto& range : ranges) {
      const auto end = static_cast<std::size_t>(range.begin) + range.values.size();
      check(range.begin >= 0 && end <= numel(name), "the state's second residual of '", name,
            "' is of elements ", range.begin, " to ", end, ", the layer has ", numel(name));
    }
  }
  for (const auto& [name, layer] : state.bases) {
    const spectral::MatrixShape& shape = layer.basis.shape;
    expect(name, "basis", static_cast<std::size_t>(shape.rows * shape.cols));
    check(!layer.holds_residuals || state.residuals.contains(name), "the state's residual of '",
          name, "' is said to be in its basis, but there is none");
  }
  for (const auto& [name, start] : state.warm_starts) {
    check(start.cols > 0 && numel(name) % static_cast<std::size_t>(start.cols) == 0,
          "the state's warm start of '", name, "' is for ", start.cols,
          " columns, which do not fit its ", numel(name), " elements");
  }
}

std::string describe_shared(const AveragerState& state) {
  return describe(state.shared_steps) + describe(state.bases);
}

}  // namespace thinwire::comm
