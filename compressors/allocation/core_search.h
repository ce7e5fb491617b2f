// The search between two neighbouring vertices of the linear relaxation, see knapsack.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace thinwire::lgreco {

// A point of one group that no other point of it dominates.
struct ParetoPoint {
  double weight = 0;
  double cost = 0;
  std::size_t item = 0;
};
// In order of rising weight and falling cost, both strictly.
using ParetoGroup = std::vector<ParetoPoint>;

struct CoreEffort {
  std::size_t sorted_states;     // states merged exactly, in total
  std::size_t scattered_states;  // states merged into cells, in total, afterwards
};

// The selections that depart from `base` and whose weight lies less than one step above its own,
// as far as they are useful: none costs as much as a lighter one.
class CoreFront {
 public:
  // Groups of which another point was chosen: (group, point).
  using Departure = std::vector<std::pair<std::size_t, std::size_t>>;

  // True if no selection in the window is better than the front: nothing was trimmed away.
  bool complete() const { return complete_; }

  std::size_t size() const { return states_.size(); }
  // Weight above the base's, up to rounding. The front is in order of rising weight and of
  // falling cost.
  double extra_weight(std::size_t state) const;
  Departure departure(std::size_t state) const;

 private:
  friend class CoreSearch;
  struct State {
    double u = 0, v = 0, reduced = 0;
    std::uint32_t parent = 0;
    std::uint32_t move = 0;
  };
  struct Trace {
    std::uint32_t parent;
    std::uint32_t move;
  };
  std::vector<State> states_;
  std::vector<std::vector<Trace>> traces_;        // of every group merged, in order
  std::vector<std::size_t> groups_;               // those groups
  std::vector<std::vector<std::size_t>> points_;  // the point of move m > 0 of a merged group
  int weight_exponent_ = 0;
  bool complete_ = true;
};

// `base` is the point of each group that the relaxation chooses; the next step of the relaxation
// adds `step_weight` > 0 and saves `step_cost` > 0. Frozen groups stay as they are. The answer is a
// function of these alone, not of the capacity.
CoreFront search_core(const std::vector<ParetoGroup>& groups, const std::vector<std::size_t>& base,
                      const std::vector<bool>& frozen, double step_weight, double step_cost,
                      CoreEffort effort);

}  // namespace thinwire::lgreco
