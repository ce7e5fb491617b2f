#include "thinwire/compressors/allocation/core_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

// A *move* takes one group from its base point to another one and changes weight and cost by
// (dw, dc). With λ the saving per weight of the relaxation's next step, the *reduced cost* of a
// move, ρ = dc + λ·dw, is never negative, because the base minimises cost + λ·weight in every
// group. A set of moves in the window 0 <= Σdw < step costs Σdc = Σρ − λ·Σdw, so Σρ is what it
// loses against the relaxation. That gives three exact cuts:
//
//  - Let gap be the most that the front found so far loses against the relaxation anywhere in the
//    window. A move, or a state, with ρ above gap cannot be part of an improvement. Most groups
//    have no other kind of move: what remains is the core.
//  - Groups are merged in order of their cheapest move. When the next one exceeds gap, all groups
//    after it do too, and the front is complete.
//  - A state that the remaining groups cannot bring back into the window is dropped.
//
// States are merged group by group. As long as the number of states allows, all that no other
// state dominates are kept, and the front is exact. After that, states go into equal cells of
// weight, and of each cell the state with the least ρ survives, with its true weight: nothing is
// ever rounded to a grid, a cell only decides which states are similar.
//
// Weights and costs are scaled by powers of two, exactly, so that the step is near one in both and
// λ is near one. Thus the dynamic range of the problem cannot overflow ρ.

namespace thinwire::lgreco {
namespace {

// Beyond this many steps a move's weight is no longer known to a small part of a step.
constexpr double kLargestMove = 0x1p44;
// Cells of weight. Fewer lose good states, more take time; the gap of random instances falls
// little beyond a thousand.
constexpr std::size_t kFewestCells = 512, kMostCells = 4096;
// How far, in steps, partial sums may leave the window on either side once cells are used.
constexpr double kCellReach = 2;
// Sums of about a thousand terms near one are good to this.
constexpr double kSlack = 1e-12;

double raised(double x) {
  return x * (1 + kSlack) + kSlack;
}

}  // namespace

class CoreSearch {
 public:
  CoreSearch(const std::vector<ParetoGroup>& groups, const std::vector<std::size_t>& base,
             const std::vector<bool>& frozen, double step_weight, double step_cost,
             CoreEffort effort)
      : effort_(effort) {
    int cost_exponent = 0;
    step_u_ = std::frexp(step_weight, &front_.weight_exponent_);
    gap_ = std::frexp(step_cost, &cost_exponent);
    lambda_ = gap_ / step_u_;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (!frozen[g]) add_group(g, groups[g], base[g], cost_exponent);
    }
    std::stable_sort(core_.begin(), core_.end(), [](const CoreGroup& a, const CoreGroup& b) {
      return a.moves.front().reduced < b.moves.front().reduced;
    });
    lowest_.assign(core_.size() + 1, 0);
    highest_.assign(core_.size() + 1, 0);
    for (std::size_t i = core_.size(); i-- > 0;) {
      double low = 0, high = 0;
      for (const Move& move : core_[i].moves) {
        low = std::min(low, move.u);
        high = std::max(high, move.u);
      }
      lowest_[i] = lowest_[i + 1] + low;
      highest_[i] = highest_[i + 1] + high;
    }
  }

  CoreFront run() {
    std::vector<State>& states = front_.states_;
    states = {State{}};
    bool cells = false;
    for (std::size_t i = 0; i < core_.size(); ++i) {
      if (core_[i].moves.front().reduced > raised(gap_)) break;
      moves_.assign(1, Move{0, 0, 0, 0});
      for (const Move& move : core_[i].moves) {
        if (move.reduced <= raised(gap_)) moves_.push_back(move);
      }
      const std::size_t children = states.size() * moves_.size();
      if (!cells && children > effort_.sorted_states) {
        cells = true;
        front_.complete_ = false;
        choose_cell_count(i);
      }
      std::size_t& effort = cells ? effort_.scattered_states : effort_.sorted_states;
      if (children > effort) break;
      effort -= children;
      if (cells) {
        merge_into_cells(i);
      } else {
        merge_exactly(i);
      }
      drop_dominated();
      record(i);
      update_gap();
    }
    keep_window();
    return std::move(front_);
  }

 private:
  struct Move {
    double u, v, reduced;
    std::size_t point;
  };

  struct CoreGroup {
    std::size_t group;
    std::vector<Move> moves;  // in order of their reduced cost
  };

  using State = CoreFront::State;

  void add_group(std::size_t g, const ParetoGroup& points, std::size_t base, int cost_exponent) {
    CoreGroup core{g, {}};
    for (std::size_t p = 0; p < points.size(); ++p) {
      if (p == base) continue;
      const double u = std::ldexp(points[p].weight - points[base].weight, -front_.weight_exponent_);
      const double v = std::ldexp(points[p].cost - points[base].cost, -cost_exponent);
      // The reduced cost is lowered by what rounding may have added, so that the cuts stay exact.
      const double size = std::abs(v) + lambda_ * std::abs(u);
      const double reduced =
          std::max(0.0, v + lambda_ * u - 8 * std::numeric_limits<double>::epsilon() * size);
      if (reduced > raised(gap_)) continue;
      if (!(std::abs(u) < kLargestMove) || !std::isfinite(reduced)) {
        front_.complete_ = false;
        continue;
      }
      core.moves.push_back({u, v, reduced, p});
    }
    if (core.moves.empty()) return;
    std::stable_sort(core.moves.begin(), core.moves.end(),
                     [](const Move& a, const Move& b) { return a.reduced < b.reduced; });
    core_.push_back(std::move(core));
  }

  void choose_cell_count(std::size_t first) {
    std::size_t moves = 1;
    for (std::size_t i = first; i < core_.size(); ++i) moves += core_[i].moves.size() + 1;
    cells_ = std::clamp(effort_.scattered_states / moves, kFewestCells, kMostCells);
  }

  // Calls take(child) for every pair of a state and a move that the exact cuts leave.
  template <typename Take>
  void for_children(std::size_t i, double least_u, double most_u, Take take) {
    const double least = std::max(least_u, -highest_[i + 1] - kSlack);
    const double most = std::min(most_u, step_u_ - lowest_[i + 1] + kSlack);
    const double bound = raised(gap_);
    const auto& states = front_.states_;
    for (std::uint32_t m = 0; m < moves_.size(); ++m) {
      const Move& move = moves_[m];
      for (std::uint32_t s = 0; s < states.size(); ++s) {
        const double u = states[s].u + move.u;
        const double reduced = states[s].reduced + move.reduced;
        if (reduced > bound || u < least || u > most) continue;
        take(State{u, states[s].v + move.v, reduced, s, m});
      }
    }
  }

  void merge_exactly(std::size_t i) {
    next_.clear();
    constexpr double kFar = std::numeric_limits<double>::infinity();
    for_children(i, -kFar, kFar, [&](const State& child) { next_.push_back(child); });
    // Stable: of equal states the one with the earlier move stays first and wins.
    std::stable_sort(next_.begin(), next_.end(), [](const State& a, const State& b) {
      return a.u < b.u || (a.u == b.u && a.v < b.v);
    });
  }

  void merge_into_cells(std::size_t i) {
    const double least = -kCellReach * step_u_, most = (1 + kCellReach) * step_u_;
    const double per_weight = static_cast<double>(cells_ - 1) / (most - least);
    table_.assign(cells_, State{0, 0, -1, 0, 0});
    for_children(i, least, most, [&](const State& child) {
      State& cell = table_[static_cast<std::size_t>((child.u - least) * per_weight)];
      if (cell.reduced < 0 || child.reduced < cell.reduced) cell = child;
    });
    next_.clear();
    for (const State& cell : table_) {
      if (cell.reduced >= 0) next_.push_back(cell);
    }
  }

  void drop_dominated() {
    double best = std::numeric_limits<double>::infinity();
    std::erase_if(next_, [&](const State& state) {
      if (state.v >= best) return true;
      best = state.v;
      return false;
    });
  }

  void record(std::size_t i) {
    auto& trace = front_.traces_.emplace_back();
    trace.reserve(next_.size());
    for (const State& state : next_) trace.push_back({state.parent, state.move});
    auto& points = front_.points_.emplace_back();
    for (const Move& move : moves_) points.push_back(move.point);
    front_.groups_.push_back(core_[i].group);
    std::swap(front_.states_, next_);
  }

  // Just below each state of the front the selection before it is the best one, and there it
  // loses most against the relaxation.
  void update_gap() {
    double gap = 0, v = 0;
    for (const State& state : front_.states_) {
      if (state.u >= step_u_) break;
      if (state.u > 0) gap = std::max(gap, v + lambda_ * state.u);
      if (state.u >= 0) v = std::min(v, state.v);
    }
    gap_ = std::min(gap_, std::max(gap, v + lambda_ * step_u_));
  }

  void keep_window() {
    auto& states = front_.states_;
    if (front_.groups_.empty()) return states.clear();
    std::vector<State> inside;
    for (std::size_t s = 0; s < states.size(); ++s) {
      if (states[s].u < -kSlack || states[s].u > step_u_ + kSlack) continue;
      inside.push_back(states[s]);
      inside.back().parent = static_cast<std::uint32_t>(s);  // its place in the last trace
    }
    states = std::move(inside);
  }

  CoreEffort effort_;
  double step_u_ = 0, lambda_ = 0;
  double gap_ = 0;
  std::vector<CoreGroup> core_;
  std::vector<double> lowest_, highest_;  // least and most weight that groups i, i + 1, ... can add
  std::vector<Move> moves_;               // of the group being merged; move 0 is staying
  std::vector<State> next_, table_;
  std::size_t cells_ = 0;
  CoreFront front_;
};

double CoreFront::extra_weight(std::size_t state) const {
  return std::ldexp(states_[state].u, weight_exponent_);
}

CoreFront::Departure CoreFront::departure(std::size_t state) const {
  Departure moved;
  std::uint32_t at = states_[state].parent;
  for (std::size_t i = traces_.size(); i-- > 0;) {
    const Trace& trace = traces_[i][at];
    if (trace.move > 0) moved.emplace_back(groups_[i], points_[i][trace.move]);
    at = trace.parent;
  }
  return moved;
}

CoreFront search_core(const std::vector<ParetoGroup>& groups, const std::vector<std::size_t>& base,
                      const std::vector<bool>& frozen, double step_weight, double step_cost,
                      CoreEffort effort) {
  return CoreSearch(groups, base, frozen, step_weight, step_cost, effort).run();
}

}  // namespace thinwire::lgreco
