#include "thinwire/compressors/allocation/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <limits>

#include "instances.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/exact_sum.h"
#include "thinwire/tests/support/sanitized.h"

namespace thinwire::lgreco {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Form {
  Constraint constraint;
  Objective objective;
};
constexpr Form kForms[] = {{Constraint::kError, Objective::kBytes},
                           {Constraint::kBytes, Objective::kBytes},
                           {Constraint::kError, Objective::kTime},
                           {Constraint::kBytes, Objective::kTime}};

double size_of(const Totals& totals, const Form& form) {
  return form.objective == Objective::kTime ? totals.seconds : totals.bytes;
}
double objective_of(const Totals& totals, const Form& form) {
  return form.constraint == Constraint::kError ? size_of(totals, form) : totals.error;
}
double constrained_of(const Totals& totals, const Form& form) {
  return form.constraint == Constraint::kError ? totals.error : size_of(totals, form);
}

Totals totals_of(const std::vector<Layer>& layers, const std::vector<std::size_t>& choice) {
  std::vector<double> bytes, error, seconds;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Candidate& c = layers[l].candidates.at(choice[l]);
    bytes.push_back(c.bytes), error.push_back(c.error), seconds.push_back(c.seconds);
  }
  return {exact_sum(bytes), exact_sum(error), exact_sum(seconds)};
}

// The least objective within `limit` and, at that objective, the least constrained total.
struct Best {
  double objective = std::numeric_limits<double>::infinity();
  double constrained = std::numeric_limits<double>::infinity();
};

Best brute_force(const std::vector<Layer>& layers, const Form& form, double limit) {
  Best best;
  std::vector<std::size_t> choice(layers.size(), 0);
  while (true) {
    const Totals totals = totals_of(layers, choice);
    const double objective = objective_of(totals, form), weight = constrained_of(totals, form);
    if (weight <= limit && (objective < best.objective ||
                            (objective == best.objective && weight < best.constrained))) {
      best = {objective, weight};
    }
    std::size_t l = 0;
    while (l < layers.size() && ++choice[l] == layers[l].candidates.size()) choice[l++] = 0;
    if (l == layers.size()) return best;
  }
}

TEST(Allocator, EqualsBruteForce) {
  constexpr double kBudgets[] = {1, 1, 0.5, 0.8, 1.3, 2, 10};
  std::mt19937_64 rng(1);
  int fallbacks = 0;
  for (int trial = 0; trial < 10'000; ++trial) {
    const Form form = kForms[trial % 4];
    const auto layers = random_problem(rng, 1 + rng() % 6, 5, trial % 3 == 0);
    const AllocationOptions options{form.constraint, form.objective, kBudgets[rng() % 7], 0};
    const Allocation found = allocate(layers, options);
    const Best best = brute_force(layers, form, found.limit);
    ASSERT_EQ(found.fell_back, std::isinf(best.objective)) << "trial " << trial;
    if (found.fell_back) {
      ++fallbacks;
      continue;
    }
    ASSERT_EQ(objective_of(found.chosen, form), best.objective) << "trial " << trial;
    ASSERT_EQ(constrained_of(found.chosen, form), best.constrained) << "trial " << trial;
    ASSERT_TRUE(found.optimal) << "trial " << trial;
    ASSERT_LE(found.lower_bound, best.objective * (1 + 1e-12)) << "trial " << trial;
  }
  EXPECT_GT(fallbacks, 100);
  EXPECT_LT(fallbacks, 3'000);
}

class AllocatorAdversary : public ::testing::TestWithParam<Adversary> {};

TEST_P(AllocatorAdversary, NeverWorseThanTheReferenceAndFallsWithTheBudget) {
  std::mt19937_64 rng(7);
  const auto layers = GetParam().make(rng);
  for (const Form& form : {kForms[0], kForms[1]}) {
    AllocationOptions options{form.constraint, form.objective, 1, 0};
    const Allocation at_one = allocate(layers, options);
    EXPECT_FALSE(at_one.fell_back);
    const Totals totals = totals_of(layers, at_one.choice);
    EXPECT_LE(totals.bytes, at_one.reference.bytes);
    EXPECT_LE(totals.error, at_one.reference.error);
    EXPECT_EQ(totals.bytes, at_one.chosen.bytes);
    EXPECT_EQ(totals.error, at_one.chosen.error);
    EXPECT_EQ(allocate(layers, options).choice, at_one.choice);

    double before = std::numeric_limits<double>::infinity();
    for (double budget = 0.25; budget <= 4; budget *= 1.32) {
      options.budget = budget;
      const Allocation found = allocate(layers, options);
      if (found.fell_back) continue;
      const double objective = objective_of(found.chosen, form);
      EXPECT_LE(constrained_of(found.chosen, form), found.limit) << "budget " << budget;
      EXPECT_LE(found.lower_bound, objective * (1 + 1e-12)) << "budget " << budget;
      // Errors are no whole numbers: equal up to their rounding is not a rise.
      const double slack = form.constraint == Constraint::kBytes ? 1 + 1e-14 : 1;
      EXPECT_LE(objective, before * slack) << "budget " << budget;
      before = objective;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Large, AllocatorAdversary, ::testing::ValuesIn(adversaries()),
                         [](const auto& instance) {
                           std::string name = instance.param.name;
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

// Budgets so close that they fall into one window of the relaxation, and right at its ends.
TEST(Allocator, BytesFallOverNeighbouringBudgets) {
  std::mt19937_64 rng(3);
  for (int trial = 0; trial < 6; ++trial) {
    auto layers = curve_problem(rng, 30, 20, 0.3);
    // A layer of another scale makes windows in which the search for the others has to go deeper.
    for (Candidate& c : layers[4].candidates) c.error *= 1e4;
    double before = std::numeric_limits<double>::infinity();
    for (int i = 0; i <= 150; ++i) {
      AllocationOptions options;
      options.budget = 0.99 + 0.02 * i / 150;
      const Allocation found = allocate(layers, options);
      ASSERT_LE(found.chosen.bytes, before);
      ASSERT_LE(found.chosen.error, found.limit);
      before = found.chosen.bytes;
    }
  }
}

// How much is lost against the linear relaxation, which no selection can beat.
TEST(Allocator, IsCloseToTheLowerBoundOnLargeProblems) {
  std::mt19937_64 rng(5);
  double worst = 0;
  for (std::size_t layers : {20, 60, 200, 1000}) {
    for (double noise : {0.0, 0.3}) {
      for (const Form& form : {kForms[0], kForms[1]}) {
        const auto problem = curve_problem(rng, layers, 64, noise);
        const Allocation found = allocate(problem, {form.constraint, form.objective, 1, 0});
        const double gap = objective_of(found.chosen, form) / found.lower_bound - 1;
        RecordProperty("gap_" + std::to_string(layers) + (noise > 0 ? "_noisy" : "_smooth") +
                           (form.constraint == Constraint::kError ? "_error" : "_bytes"),
                       std::to_string(gap));
        // Below some tens of layers the relaxation itself is coarse.
        EXPECT_LT(gap, layers < 60 ? 0.02 : 1e-3) << layers << " layers";
        worst = std::max(worst, gap);
      }
    }
  }
  EXPECT_GT(worst, 0);
}

#if !THINWIRE_SANITIZED  // a sanitizer keeps freed memory
TEST(Allocator, NeedsLittleMemory) {
  std::mt19937_64 rng(9);
  for (const Adversary& adversary : adversaries()) allocate(adversary.make(rng));
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 200 * 1024) << "KiB";
}
#endif

Layer layer_of(const char* name, std::size_t reference, std::vector<Candidate> candidates,
               double norm = 0) {
  return {name, 100, reference, std::move(candidates), norm};
}

TEST(Allocator, MovesErrorToWhereItSavesMost) {
  const std::vector<Layer> layers = {
      layer_of("a", 1, {{"a4", 40, 1, 0}, {"a2", 20, 2, 0}, {"a1", 10, 3, 0}}),
      layer_of("b", 1, {{"b4", 400, 1, 0}, {"b2", 200, 2, 0}, {"b1", 100, 3, 0}})};
  const Allocation found = allocate(layers);
  EXPECT_THAT(found.choice, ElementsAre(0, 2));
  EXPECT_EQ(found.reference.bytes, 220);
  EXPECT_EQ(found.chosen.bytes, 140);
  EXPECT_EQ(found.chosen.error, 4);
}

TEST(Allocator, FallsBackAndSaysSo) {
  const std::vector<Layer> layers = {layer_of("a", 1, {{"x", 4, 3, 0}, {"y", 2, 4, 0}}),
                                     layer_of("b", 0, {{"x", 4, 3, 0}})};
  AllocationOptions options;
  options.budget = 0.5;
  const Allocation found = allocate(layers, options);
  EXPECT_TRUE(found.fell_back);
  EXPECT_THAT(found.choice, ElementsAre(1, 0));
  EXPECT_THAT(found.warnings.at(0), HasSubstr("allows a total error of 3.5, the least that can be "
                                              "reached is 6; the reference setting is used"));
}

TEST(Allocator, TiesGoToTheReferenceThenToTheFirst) {
  const Candidate same{"s", 5, 1, 0};
  const std::vector<Layer> layers = {
      layer_of("a", 2, {same, same, same, same}),
      layer_of("b", 1, {{"x", 9, 1, 0}, {"y", 9, 2, 0}, same, same})};
  EXPECT_THAT(allocate(layers).choice, ElementsAre(2, 2));
}

TEST(Allocator, WarnsOfADominatingLayer) {
  const std::vector<Layer> layers = {layer_of("small", 0, {{"x", 4, 1, 0}}),
                                     layer_of("big", 0, {{"x", 4, 9, 0}})};
  EXPECT_THAT(allocate(layers).warnings,
              ElementsAre("layer 'big' holds 90 % of the reference's total error",
                          "layer 'big' holds 90 % of the error budget"));
  const std::vector<Layer> even = {layer_of("a", 0, {{"x", 4, 5, 0}}),
                                   layer_of("b", 0, {{"x", 4, 5, 0}})};
  EXPECT_THAT(allocate(even).warnings, IsEmpty());
}

TEST(Allocator, CapsTheRelativeErrorWhereTheReferenceKeepsTheCap) {
  const std::vector<Layer> layers = {
      layer_of("a", 1, {{"id", 100, 0, 0}, {"ref", 10, 9.7, 0}, {"worse", 1, 9.8, 0}}, 10),
      layer_of("b", 1, {{"id", 100, 0, 0}, {"ref", 50, 9.4, 0}, {"bad", 1, 9.6, 0}}, 10)};
  AllocationOptions options;
  options.budget = 1.05;
  EXPECT_THAT(allocate(layers, options).choice, ElementsAre(2, 2));
  options.max_relative_error = 0.95;
  EXPECT_THAT(allocate(layers, options).choice, ElementsAre(2, 1));
}

// A cap below the reference's own error would let a layer have more than the reference, never less:
// nothing could be moved from one layer to another.
TEST(Allocator, CapDoesNotBindWhereTheReferenceLosesMore) {
  const std::vector<Layer> layers = {
      layer_of("a", 1, {{"more", 60, 9.2, 0}, {"reference", 50, 9.6, 0}, {"less", 40, 9.7, 0}}, 10),
      layer_of("b", 1, {{"more", 60, 5, 0}, {"reference", 50, 9.6, 0}, {"less", 40, 9.7, 0}}, 10)};
  AllocationOptions options;
  options.constraint = Constraint::kBytes;
  options.max_relative_error = 0.95;
  EXPECT_THAT(allocate(layers, options).choice, ElementsAre(2, 0));
}

TEST(Allocator, TimeAndBytesCanDisagree) {
  const std::vector<Layer> layers = {
      layer_of("a", 1, {{"identity", 400, 0, 0.001}, {"quantize", 100, 1, 0.002}})};
  EXPECT_THAT(allocate(layers, {Constraint::kError, Objective::kBytes, 1, 0}).choice,
              ElementsAre(1));
  EXPECT_THAT(allocate(layers, {Constraint::kError, Objective::kTime, 1, 0}).choice,
              ElementsAre(0));
}

TEST(Allocator, AcceptsNoLayers) {
  const Allocation found = allocate({});
  EXPECT_THAT(found.choice, IsEmpty());
  EXPECT_FALSE(found.fell_back);
}

TEST(Allocator, RefusesBadNumbersNamingTheLayer) {
  const auto message = [](const Layer& layer, double budget = 1) -> std::string {
    try {
      AllocationOptions options;
      options.budget = budget;
      allocate({layer}, options);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message(layer_of("w", 0, {})), HasSubstr("layer 'w' has no candidate"));
  EXPECT_THAT(message(layer_of("w", 1, {{"x", 1, 1, 0}})), HasSubstr("reference 1 is not below"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", -1, 1, 0}})), HasSubstr("'w', candidate 'x'"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", 1, nan, 0}})), HasSubstr("nan"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", 1, 1, HUGE_VAL}})), HasSubstr("inf"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", 1, 1, 0}}, -1)), HasSubstr("norm"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", 1, 1, 0}}), 0), HasSubstr("budget"));
  EXPECT_THAT(message(layer_of("w", 0, {{"x", 1, 1, 0}}), nan), HasSubstr("budget"));
}

TEST(Allocator, RefusesSumsThatOverflow) {
  const Layer layer{"w", 1, 0, {{"a", 1, 2, 1e308}}, 0};
  EXPECT_THROW(allocate({layer, layer}), InvalidArgument);
  AllocationOptions options;
  options.budget = 1e308;
  EXPECT_THROW(allocate({layer}, options), InvalidArgument);
}

TEST(ExactSum, DoesNotDependOnTheOrder) {
  EXPECT_EQ(exact_sum(std::vector<double>{1e100, 1, -1e100}), 1);
  EXPECT_EQ(exact_sum(std::vector<double>{0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1}), 1.0);
  // Half way between two doubles, and just above half way.
  EXPECT_EQ(exact_sum(std::vector<double>{1, 0x1p-53}), 1);
  EXPECT_EQ(exact_sum(std::vector<double>{1, 0x1p-53, 0x1p-110}), 1 + 0x1p-52);
  EXPECT_EQ(exact_sum(std::vector<double>{5e-324, 5e-324}), 1e-323);
  std::mt19937_64 rng(2);
  std::vector<double> values(1000);
  for (double& x : values) x = std::exp2(std::uniform_real_distribution<double>(-300, 300)(rng));
  const double sum = exact_sum(values);
  std::shuffle(values.begin(), values.end(), rng);
  EXPECT_EQ(exact_sum(values), sum);
}

}  // namespace
}  // namespace thinwire::lgreco
