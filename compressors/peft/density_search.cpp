#include "thinwire/compressors/peft/density_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "thinwire/common/error.h"

namespace thinwire::peft {
namespace {

// Densities nearer to each other than this are one.
constexpr double kResolution = 1e-6;

// The density in (low, high] nearest to `low` that is known to fit, to a millionth of the vector;
// `high` fits, `low` does not.
template <typename Fits>
double bisect(double low, double high, Fits fits) {
  while (high - low > kResolution) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return high;
}

// The smallest density whose error is at most `target`. Errors need not fall all the way (a mean
// scale is best near 54 % for Gaussian deltas): the search climbs a ladder to the first rung that
// fits, and where none does it looks for the minimum around the best one.
std::optional<double> least_density(double target, const std::function<double(double)>& error_of) {
  constexpr double kStep = std::numbers::sqrt2;
  const auto fits = [&](double density) { return error_of(density) <= target; };
  double below = 0, best = 1, least = std::numeric_limits<double>::infinity();
  for (int rung = 24; rung >= 0; --rung) {
    const double density = std::exp2(-rung / 2.0);
    const double error = error_of(density);
    if (error <= target) return bisect(below, density, fits);
    if (error < least) {
      best = density;
      least = error;
    }
    below = density;
  }
  double low = best / kStep, high = std::min(1.0, best * kStep);
  while (high - low > 1e-4) {
    const double left = low + (high - low) / 3, right = high - (high - low) / 3;
    const double left_error = error_of(left), right_error = error_of(right);
    if (left_error <= target) return bisect(best / kStep, left, fits);
    if (right_error <= target) return bisect(best / kStep, right, fits);
    (left_error < right_error ? high : low) = left_error < right_error ? right : left;
  }
  return std::nullopt;
}

// The density in (low, high) at which the blocks should have so many bytes, if they have
// `correction` times the ideal ones.
double density_with(double bytes, double correction, double low, double high,
                    const BytesAt& ideal_bytes_at) {
  while (high - low > kResolution) {
    const double middle = (low + high) / 2;
    (correction * ideal_bytes_at(middle) < bytes ? low : high) = middle;
  }
  return low;
}

}  // namespace

TernaryDelta least_density_with_error(double target, const ErrorAt& error_at,
                                      const Select& select) {
  auto density = least_density(target, error_at);
  check(density.has_value(), "no density has a relative error of ", target, " or less");
  TernaryDelta delta = select(*density);
  // The scale is a float32 number: its rounding may add what nobody counted.
  for (int i = 0; i < 8 && delta.relative_error > target && *density < 1; ++i) {
    *density = std::min(1.0, *density + kResolution);
    delta = select(*density);
  }
  check(delta.relative_error <= target, "no density has a relative error of ", target, " or less");
  return delta;
}

TernaryDelta best_density_within_bytes(
    std::uint64_t target, const ErrorAt& error_at, const BytesAt& ideal_bytes_at,
    const Select& select, const std::function<std::uint64_t(TernaryDelta&)>& bytes_of) {
  // There a ternary vector is largest; beyond, it gets smaller again and, as a rule, worse.
  constexpr double kLargest = 2.0 / 3;
  // So near to the target is near enough: less than a header's digits may change.
  const std::uint64_t slack = std::max<std::uint64_t>(32, target / 4096);
  double fixed = 0;
  std::optional<TernaryDelta> found;
  double low = 0, high = kLargest, correction = 1;
  bool largest_tried = false;
  while (high - low > kResolution) {
    double density =
        density_with(static_cast<double>(target) - fixed, correction, low, high, ideal_bytes_at);
    // The first guess knows nothing of the header; a guess at the rim tells nothing.
    if (!largest_tried && density > kLargest - 1e-3)
      density = kLargest;
    else if (density <= low + kResolution || density >= high - kResolution)
      density = (low + high) / 2;
    largest_tried = largest_tried || density == kLargest;
    TernaryDelta trial = select(density);
    const std::uint64_t bytes = bytes_of(trial);
    const double ideal = ideal_bytes_at(density);
    if (fixed == 0) {
      // What is no block's: with planes that are empty the rest remains.
      TernaryDelta empty;
      empty.manifest = trial.manifest;
      empty.planes = TernaryPlanes(trial.manifest.numel);
      fixed = static_cast<double>(bytes_of(empty));
      check(fixed <= static_cast<double>(target), "no density gives a file of ", target,
            " bytes or less; what is no block's takes ", fixed);
    }
    if (ideal > 0) correction = std::max(0.01, (static_cast<double>(bytes) - fixed) / ideal);
    if (bytes <= target) {
      low = density;
      found = std::move(trial);
      if (density == kLargest || target - bytes <= slack) break;
    } else {
      high = density;
    }
  }
  // Signs alone, where all magnitudes are alike.
  if (!found || error_at(1) < found->relative_error) {
    TernaryDelta all = select(1);
    if (bytes_of(all) <= target) found = std::move(all);
  }
  check(found.has_value(), "no density gives a file of ", target, " bytes or less");
  return std::move(*found);
}

}  // namespace thinwire::peft
