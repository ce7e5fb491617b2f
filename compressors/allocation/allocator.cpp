#include "thinwire/compressors/allocation/allocator.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/exact_sum.h"
#include "thinwire/compressors/allocation/knapsack.h"

namespace thinwire::lgreco {
namespace {

using Choice = std::vector<std::size_t>;

void check_layer(const Layer& layer) {
  check(!layer.candidates.empty(), "layer '", layer.name, "' has no candidate");
  check(layer.reference < layer.candidates.size(), "layer '", layer.name, "': reference ",
        layer.reference, " is not below the number of candidates, ", layer.candidates.size());
  const auto good = [](double x) { return std::isfinite(x) && x >= 0; };
  check(good(layer.norm), "layer '", layer.name, "': norm must be finite and not negative, got ",
        layer.norm);
  for (const Candidate& c : layer.candidates) {
    check(good(c.bytes) && good(c.error) && good(c.seconds), "layer '", layer.name,
          "', candidate '", c.spec,
          "': bytes, error and seconds must be finite and not negative, got ", c.bytes, ", ",
          c.error, ", ", c.seconds);
  }
}

// Which number of a candidate is minimised and which one is limited.
struct Roles {
  double Candidate::*cost;
  double Candidate::*weight;
  double Totals::*total_cost;
  double Totals::*total_weight;
  const char* cost_name;
  const char* weight_name;
};

Roles roles_of(const AllocationOptions& options) {
  const bool time = options.objective == Objective::kTime;
  Roles roles{time ? &Candidate::seconds : &Candidate::bytes,
              &Candidate::error,
              time ? &Totals::seconds : &Totals::bytes,
              &Totals::error,
              time ? "seconds" : "bytes",
              "error"};
  if (options.constraint == Constraint::kBytes) {
    std::swap(roles.cost, roles.weight);
    std::swap(roles.total_cost, roles.total_weight);
    std::swap(roles.cost_name, roles.weight_name);
  }
  return roles;
}

Totals totals_of(const std::vector<Layer>& layers, const Choice& choice) {
  ExactSum bytes, error, seconds;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Candidate& c = layers[l].candidates[choice[l]];
    bytes.add(c.bytes);
    error.add(c.error);
    seconds.add(c.seconds);
  }
  const Totals totals{bytes.value(), error.value(), seconds.value()};
  check(std::isfinite(totals.bytes) && std::isfinite(totals.error) && std::isfinite(totals.seconds),
        "the sums over all layers must be finite, got bytes ", totals.bytes, ", error ",
        totals.error, ", seconds ", totals.seconds);
  return totals;
}

Choice reference_of(const std::vector<Layer>& layers) {
  Choice choice;
  for (const Layer& layer : layers) choice.push_back(layer.reference);
  return choice;
}

// Candidates within the cap, as knapsack items; `kept` maps them back.
KnapsackGroup group_of(const Layer& layer, const AllocationOptions& options, const Roles& roles,
                       Choice& kept) {
  double cap = options.max_relative_error * layer.norm;
  // Else the layer could be given more than the reference has, but never less.
  if (layer.candidates[layer.reference].error > cap) cap = 0;
  KnapsackGroup group;
  for (std::size_t c = 0; c < layer.candidates.size(); ++c) {
    const Candidate& candidate = layer.candidates[c];
    if (c == layer.reference) {
      group.preferred = group.items.size();
    } else if (cap > 0 && candidate.error > cap) {
      continue;
    }
    group.items.push_back({candidate.*roles.cost, candidate.*roles.weight});
    kept.push_back(c);
  }
  return group;
}

// A layer that holds most of the budget decides alone how all others are compressed.
void warn_of_dominating(const std::vector<Layer>& layers, const Choice& choice, const Roles& roles,
                        double total, const std::string& of_what,
                        std::vector<std::string>& warnings) {
  if (layers.size() < 2) return;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const double share = layers[l].candidates[choice[l]].*roles.weight / total;
    if (share > 0.5) {
      warnings.push_back(concat("layer '", layers[l].name, "' holds ", std::lround(share * 100),
                                " % of ", of_what));
    }
  }
}

}  // namespace

Allocation allocate(const std::vector<Layer>& layers, const AllocationOptions& options) {
  check(options.budget > 0 && std::isfinite(options.budget),
        "budget must be finite and above 0, got ", options.budget);
  check(options.max_relative_error >= 0, "max_relative_error must not be negative, got ",
        options.max_relative_error);
  Allocation result;
  const Roles roles = roles_of(options);
  const Choice reference = reference_of(layers);
  std::vector<KnapsackGroup> groups;
  std::vector<Choice> kept(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    check_layer(layers[l]);
    groups.push_back(group_of(layers[l], options, roles, kept[l]));
  }
  result.reference = totals_of(layers, reference);
  const double reference_cost = result.reference.*roles.total_cost;
  const double reference_weight = result.reference.*roles.total_weight;
  result.limit = options.budget * reference_weight;
  check(std::isfinite(result.limit), "budget ", options.budget, " times the reference's total ",
        roles.weight_name, ", ", reference_weight, ", is not finite");

  const KnapsackSolution solution = solve_knapsack(groups, result.limit);
  result.lower_bound = solution.lower_bound;
  result.optimal = solution.optimal;
  // The search need not pass through the reference, so it is compared here. It does not depend on
  // the budget, hence the objective still never rises with it.
  const bool reference_wins =
      reference_weight <= result.limit &&
      (reference_cost < solution.cost ||
       (reference_cost == solution.cost && reference_weight <= solution.weight));
  if (!solution.feasible) {
    result.fell_back = true;
    result.optimal = false;
    result.warnings.push_back(concat("the budget allows a total ", roles.weight_name, " of ",
                                     result.limit, ", the least that can be reached is ",
                                     solution.weight, "; the reference setting is used, with ",
                                     reference_weight));
  }
  if (!solution.feasible || reference_wins) {
    result.choice = reference;
  } else {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      result.choice.push_back(kept[l][solution.choice[l]]);
    }
  }
  result.chosen = totals_of(layers, result.choice);
  warn_of_dominating(layers, reference, roles, reference_weight,
                     concat("the reference's total ", roles.weight_name), result.warnings);
  if (!result.fell_back) {
    warn_of_dominating(layers, result.choice, roles, result.limit,
                       concat("the ", roles.weight_name, " budget"), result.warnings);
  }
  return result;
}

}  // namespace thinwire::lgreco
