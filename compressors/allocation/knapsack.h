// The multiple-choice knapsack: one item of every group, least total cost, total weight within a
// capacity. It knows nothing of layers and codecs.
#pragma once

#include <cstddef>
#include <vector>

namespace thinwire::lgreco {

struct KnapsackItem {
  double cost = 0;    // finite, not negative
  double weight = 0;  // finite, not negative
};

struct KnapsackGroup {
  std::vector<KnapsackItem> items;  // at least one
  // The item that wins among items of equal cost and weight; the others in the order given.
  std::size_t preferred = 0;
};

struct KnapsackSolution {
  bool feasible = false;            // false: even the lightest items exceed the capacity
  std::vector<std::size_t> choice;  // item of each group; the lightest ones if not feasible
  double cost = 0;                  // exact sums, rounded once
  double weight = 0;
  double lower_bound = 0;  // no selection within the capacity costs less (linear relaxation)
  bool optimal = false;    // proven: no selection costs less than this one
};

// Solves it, exactly where the search can be completed (always up to some tens of thousands of
// combinations, mostly far beyond), else nearly. Whatever the input:
//  - weight <= capacity, where sums are exact and rounded once;
//  - the cost never rises when the capacity grows and nothing else changes (exact for integer costs
//    with sums up to 2^53; else up to rounding, a few 1e-16 of the total);
//  - equal input gives an equal answer; of two selections of equal cost the lighter one wins, then
//    the one found first.
// About O(groups · items · log) time and some tens of megabytes at 1,000 groups of 64 items.
// Thread-safe.
KnapsackSolution solve_knapsack(const std::vector<KnapsackGroup>& groups, double capacity);

}  // namespace thinwire::lgreco
