#include "thinwire/compressors/allocation/knapsack.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/core_search.h"
#include "thinwire/compressors/allocation/exact_sum.h"

// 1. In every group, drop the items that another one dominates, and find the lower convex hull of
//    the rest over (weight, cost).
// 2. Sort the hull segments of all groups by saving per weight. Taking them in this order walks
//    along the *vertices* 0, 1, 2, ... of the relaxation: vertex j is the cheapest of all
//    selections that weigh no more than it (Sinha and Zoltners, "The multiple-choice knapsack
//    problem", Operations Research 27, 1979). Find the last vertex j within the capacity.
// 3. The answer lies in the window between the vertices j and j + 1. Search there for selections
//    that depart from vertex j in a few groups (core_search.cpp), and take the cheapest one within
//    the capacity.
// 4. Where the search was not complete, the step to j + 1 may be the large step of one group,
//    beside which the choices of all others are too small to be told apart. Hold this group at each
//    of its points in turn and walk the others along their vertices up to the capacity. Then freeze
//    it at vertex j and solve for the others, which have smaller steps, from 2 on. Keep the best.
//
// Why the cost cannot rise with the capacity: the set of selections found in 3 is a function of
// the window, not of the capacity, so within a window the minimum runs over a growing set; and a
// selection from an earlier window weighs less than vertex j, which is therefore no dearer. The
// subproblem of 4 is again a function of the window, so the same holds for it by induction. Any
// improvement that looks at the slack of this capacity would break this. Unfreezing, swapping or
// filling up afterwards must not be added.

namespace thinwire::lgreco {
namespace {

// The exact phase sorts what it merges (a quarter of a million states take about 50 ms), the cells
// cost a few ns a state. Deeper levels refine smaller and smaller steps and get less. Four times as
// much gains nothing that can be measured on large problems; a quarter would no longer solve all of
// 15,625 combinations exactly.
constexpr CoreEffort kFirstEffort{std::size_t{1} << 18, std::size_t{1} << 22};
constexpr CoreEffort kDeepEffort{std::size_t{1} << 15, std::size_t{1} << 19};
constexpr int kLevels = 12;
// Levels at which all points of the frozen group are tried. One group of another scale is common
// (the first or the last layer of a network), three are not.
constexpr int kHeldLevels = 3;

struct Step {
  std::size_t group, to;
  double weight, cost;  // both positive: added weight, saved cost
  // The exponent range of long double keeps the quotient finite for all doubles.
  long double slope() const { return static_cast<long double>(cost) / weight; }
};

ParetoGroup pareto_of(const KnapsackGroup& group) {
  ParetoGroup points;
  for (std::size_t i = 0; i < group.items.size(); ++i) {
    points.push_back({group.items[i].weight, group.items[i].cost, i});
  }
  const auto later = [&](std::size_t item) { return item != group.preferred; };
  std::stable_sort(points.begin(), points.end(), [&](const auto& a, const auto& b) {
    if (a.weight != b.weight) return a.weight < b.weight;
    if (a.cost != b.cost) return a.cost < b.cost;
    return later(a.item) < later(b.item);
  });
  ParetoGroup kept;
  for (const ParetoPoint& point : points) {
    if (kept.empty() || point.cost < kept.back().cost) kept.push_back(point);
  }
  return kept;
}

void add_hull(std::size_t group, const ParetoGroup& points, std::vector<Step>& steps) {
  const std::size_t first = steps.size();
  for (std::size_t p = 1; p < points.size(); ++p) {
    const auto step_from = [&](std::size_t from) {
      return Step{group, p, points[p].weight - points[from].weight,
                  points[from].cost - points[p].cost};
    };
    // A segment that saves no more per weight than the one to the new point lies above the hull.
    std::size_t from = steps.size() > first ? steps.back().to : 0;
    while (steps.size() > first && steps.back().slope() <= step_from(from).slope()) {
      steps.pop_back();
      from = steps.size() > first ? steps.back().to : 0;
      // The joined segment replaces the one just dropped.
    }
    steps.push_back(step_from(from));
  }
}

class Solver {
 public:
  Solver(const std::vector<KnapsackGroup>& groups, double capacity)
      : groups_(groups), capacity_(capacity) {
    for (std::size_t g = 0; g < groups.size(); ++g) {
      points_.push_back(pareto_of(groups[g]));
      add_hull(g, points_.back(), steps_);
    }
    std::stable_sort(steps_.begin(), steps_.end(),
                     [](const Step& a, const Step& b) { return a.slope() > b.slope(); });
    frozen_.assign(groups.size(), false);
    start_.assign(groups.size(), 0);
  }

  KnapsackSolution solve() {
    if (weight_of(start_) > capacity_) {
      set_best(start_);
      best_.lower_bound = best_.cost;
      return best_;
    }
    for (int level = 0; level < kLevels; ++level) {
      const std::size_t taken = steps_within_capacity();
      const std::vector<std::size_t> base = vertex(taken);
      offer(base);
      const bool last = taken == steps_.size();
      if (level == 0) set_bound(base, last ? nullptr : &steps_[taken]);
      if (last) {
        best_.optimal |= level == 0;
        break;
      }
      const Step step = steps_[taken];
      const CoreFront front = search_core(points_, base, frozen_, step.weight, step.cost,
                                          level == 0 ? kFirstEffort : kDeepEffort);
      offer_front(base, front);
      if (front.complete()) {
        best_.optimal |= level == 0;
        break;
      }
      freeze(step.group);
      for (std::size_t p = 0; level < kHeldLevels && p < points_[step.group].size(); ++p) {
        start_[step.group] = p;
        if (weight_of(start_) <= capacity_) offer(vertex(steps_within_capacity()));
      }
      start_[step.group] = base[step.group];
    }
    best_.feasible = true;
    best_.lower_bound = std::min(best_.lower_bound, best_.cost);
    return best_;
  }

 private:
  double weight_of(const std::vector<std::size_t>& points) const {
    ExactSum sum;
    for (std::size_t g = 0; g < points.size(); ++g) sum.add(points_[g][points[g]].weight);
    return sum.value();
  }

  double cost_of(const std::vector<std::size_t>& points) const {
    ExactSum sum;
    for (std::size_t g = 0; g < points.size(); ++g) sum.add(points_[g][points[g]].cost);
    return sum.value();
  }

  std::vector<std::size_t> vertex(std::size_t taken) const {
    std::vector<std::size_t> points = start_;
    for (std::size_t s = 0; s < taken; ++s) points[steps_[s].group] = steps_[s].to;
    return points;
  }

  // Most steps with which the weight, summed exactly, stays within the capacity; at least 0. The
  // plain running sum tells where to look first.
  std::size_t steps_within_capacity() const {
    const auto fits = [&](std::size_t steps) { return weight_of(vertex(steps)) <= capacity_; };
    std::size_t guess = 0;
    for (double sum = weight_of(start_); guess < steps_.size(); ++guess) {
      sum += steps_[guess].weight;
      if (sum > capacity_) break;
    }
    std::size_t within = 0, beyond = steps_.size() + 1;
    for (std::size_t stride = 1, at = guess; within < at && at < beyond; stride *= 2) {
      if (fits(at)) {
        within = at;
        at = std::min(beyond, at + stride);
      } else {
        beyond = at;
        at = at > stride ? at - stride : 0;
      }
    }
    while (beyond - within > 1) {
      const std::size_t middle = within + (beyond - within) / 2;
      (fits(middle) ? within : beyond) = middle;
    }
    return within;
  }

  void set_best(const std::vector<std::size_t>& points) {
    best_.choice.resize(points.size());
    for (std::size_t g = 0; g < points.size(); ++g) {
      best_.choice[g] = points_[g][points[g]].item;
    }
    best_.cost = cost_of(points);
    best_.weight = weight_of(points);
    found_ = true;
  }

  // True if `points` is within the capacity.
  bool offer(const std::vector<std::size_t>& points) {
    const double weight = weight_of(points);
    if (weight > capacity_) return false;
    const double cost = cost_of(points);
    if (!found_ || cost < best_.cost || (cost == best_.cost && weight < best_.weight)) {
      set_best(points);
    }
    return true;
  }

  // The front is in order of falling cost: the last member within the capacity is the best one.
  // Its weights are known up to rounding, so those near the capacity are added up exactly.
  void offer_front(const std::vector<std::size_t>& base, const CoreFront& front) {
    const double ulp = std::nextafter(capacity_, HUGE_VAL) - capacity_;
    const double room = (capacity_ - weight_of(base)) * (1 + 1e-9) + 4 * ulp;
    for (std::size_t s = front.size(); s-- > 0;) {
      if (front.extra_weight(s) > room) continue;
      std::vector<std::size_t> points = base;
      for (const auto& [group, point] : front.departure(s)) points[group] = point;
      if (offer(points)) return;
    }
  }

  // Between two vertices the relaxation follows the straight line.
  void set_bound(const std::vector<std::size_t>& base, const Step* next) {
    long double bound = cost_of(base);
    if (next) bound -= next->slope() * (capacity_ - weight_of(base));
    best_.lower_bound = static_cast<double>(std::max(bound, 0.0L));
  }

  void freeze(std::size_t group) {
    frozen_[group] = true;
    std::erase_if(steps_, [&](const Step& step) { return step.group == group; });
  }

  const std::vector<KnapsackGroup>& groups_;
  double capacity_;
  std::vector<ParetoGroup> points_;
  std::vector<Step> steps_;  // in order of falling slope
  std::vector<bool> frozen_;
  std::vector<std::size_t> start_;  // the lightest point, or where the group is frozen
  KnapsackSolution best_;
  bool found_ = false;
};

}  // namespace

KnapsackSolution solve_knapsack(const std::vector<KnapsackGroup>& groups, double capacity) {
  double cost = 0, weight = 0;
  for (const KnapsackGroup& group : groups) {
    check(!group.items.empty(), "a knapsack group has no item");
    double dearest = 0, heaviest = 0;
    for (const KnapsackItem& item : group.items) {
      check(item.cost >= 0 && item.weight >= 0, "knapsack items must not be negative, got cost ",
            item.cost, ", weight ", item.weight);
      dearest = std::max(dearest, item.cost);
      heaviest = std::max(heaviest, item.weight);
    }
    cost += dearest;
    weight += heaviest;
  }
  check(std::isfinite(cost) && std::isfinite(weight),
        "the sums of the largest costs and weights of all groups must be finite, got ", cost,
        " and ", weight);
  return Solver(groups, capacity).solve();
}

}  // namespace thinwire::lgreco
