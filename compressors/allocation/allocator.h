// Chooses one compression candidate for every layer.
//
// Markov et al., "L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep
// Learning", MLSys 2024, section 4: least bytes with a total error no larger than that of a uniform
// reference setting. Here also the inverse form, least error at the reference's bytes; predicted
// seconds in place of bytes; and candidates of any codec side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace thinwire::lgreco {

// One way to send a layer. All numbers are finite and not negative.
struct Candidate {
  std::string spec;    // codec spec
  double bytes = 0;    // what one rank sends for the layer; whole numbers up to 2^53 add up exactly
  double error = 0;    // l2 norm of gradient − decoded gradient, or its square; see ErrorMeasure
  double seconds = 0;  // predicted time to encode, send and decode
};

struct Layer {
  std::string name;
  std::int64_t numel = 0;
  std::size_t reference = 0;  // index of the uniform setting among the candidates
  std::vector<Candidate> candidates;
  // Error of sending nothing (the gradient's norm, in the measure of the candidates); 0: not known.
  double norm = 0;
};

// The measure is already in the numbers; the name only says how they were made.
enum class ErrorMeasure { kL2, kL2Squared };

// What is held at the reference: its error (least bytes or seconds is sought), or its bytes or
// seconds (least error is sought).
enum class Constraint { kError, kBytes };

// What "size" means on the other side.
enum class Objective { kBytes, kTime };

struct AllocationOptions {
  Constraint constraint = Constraint::kError;
  Objective objective = Objective::kBytes;
  // The limit is this times the reference's total; above 0.
  double budget = 1;
  // Candidates with an error above this times Layer::norm are left out, in the measure of the
  // candidates; 0: no cap. A layer whose reference loses more is not capped: the user has chosen
  // so.
  double max_relative_error = 0;
};

// Sums over the layers, rounded once, so that they do not depend on the order of the layers.
struct Totals {
  double bytes = 0;
  double error = 0;
  double seconds = 0;
};

struct Allocation {
  std::vector<std::size_t> choice;  // candidate of each layer
  Totals chosen;
  Totals reference;
  double limit = 0;        // budget times the reference's total of what is constrained
  double lower_bound = 0;  // no feasible choice has a smaller objective
  bool optimal = false;    // proven that none has
  // The budget is below what any choice can reach: the choice is the reference.
  bool fell_back = false;
  std::vector<std::string> warnings;  // for people: a fallback, a layer that holds most of it all
};

// Solves the allocation. For every input:
//  - the constrained total is at most `limit`, in true numbers, unless `fell_back`;
//  - with budget >= 1 the objective is never above the reference's, so at budget 1 neither the
//    bytes (seconds) nor the error is ever above the reference's;
//  - among budgets that do not fall back, the objective never rises with the budget (exact for
//    whole bytes; seconds and errors to rounding);
//  - equal input gives an equal choice. Ties: smaller objective, then smaller constrained total,
//    then the reference; between equal candidates of a layer the reference, then the first.
// Exact on small problems (always up to some tens of thousands of combinations, mostly far beyond),
// see Allocation::optimal. Throws InvalidArgument naming the layer for a layer without candidates,
// a reference out of range, negative or non-finite numbers or overflowing sums. Thread-safe.
Allocation allocate(const std::vector<Layer>& layers, const AllocationOptions& options = {});

}  // namespace thinwire::lgreco
