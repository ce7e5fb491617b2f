#include "thinwire/comm/average/residuals.h"

#include <algorithm>

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

std::vector<float> narrowed(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

}  // namespace

ErrorFeedback::Carried Residuals::correct(std::string_view name, std::span<float> values,
                                          const LayerSetting& setting, bool compressed,
                                          Extents owned, int world, std::int64_t step) {
  const bool uses_momentum = compressed && setting.momentum.has_value();
  const bool uses_feedback = compressed && setting.uses_feedback();
  // Momentum comes first: what is owed must not enter the velocity.
  if (uses_momentum) momentum.correct(name, values, *setting.momentum);
  ErrorFeedback::Carried carried{};
  if (uses_feedback) {
    carried = feedback.carried(name, values.size(), setting.feedback, step);
  } else if (!compressed || uses_momentum) {
    add(values, feedback.residual(name), 1);
  }
  if (!uses_momentum) add(values, momentum.residual(name), 1);
  for (const SecondResidual::Range* range : second.unowned(name, owned)) {
    add(values.subspan(static_cast<std::size_t>(range->begin)), range->values,
        static_cast<float>(world));
  }
  return carried;
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

void Residuals::commit(std::string_view name, const LayerSetting& setting, bool compressed,
                       Extents owned) {
  const bool uses_momentum = compressed && setting.momentum.has_value();
  if (!uses_momentum) momentum.drop(name);
  if (!compressed || uses_momentum) feedback.drop(name);
  second.drop_unowned(name, owned);
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
    for (const auto& [name, values] : state.residuals) add(sums[name].residual, values, 0, share);
    for (const auto& [name, layer] : state.momentum) {
      add(sums[name].velocity, layer.velocity, 0, share);
      add(sums[name].momentum_residual, layer.residual, 0, share);
    }
    // The owner holds what the mean lost, not its share of it.
    for (const auto& [name, ranges] : state.second) {
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
  for (const auto& [name, sum] : sums) {
    if (!sum.residual.empty()) merged.residuals[name] = narrowed(sum.residual);
    if (!sum.velocity.empty()) {
      merged.momentum[name] = {narrowed(sum.velocity), narrowed(sum.momentum_residual)};
    }
  }
  return merged;
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
  for (const auto& [name, start] : state.warm_starts) {
    check(start.cols > 0 && numel(name) % static_cast<std::size_t>(start.cols) == 0,
          "the state's warm start of '", name, "' is for ", start.cols,
          " columns, which do not fit its ", numel(name), " elements");
  }
}

}  // namespace thinwire::comm
