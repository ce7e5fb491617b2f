// The magnitude that stands for every kept entry of a ternary delta.
#pragma once

#include <optional>
#include <string>

namespace thinwire::peft {

// mean |kept| over the standard deviation for Gaussian entries of mean 0: 2 phi(z) / k, z the
// (1 - k/2) quantile; 2.338 at k = 5 %. Throws InvalidArgument for a density outside (0, 1].
double gaussian_mean_kept(double density);

// Why a scale of alpha standard deviations would diverge if deltas were compressed again and again
// with error feedback, or "" where it would not; m = mean |kept| / std. An alpha of at least 2 m
// does not even contract once (relative error^2 = 1 - 2 k alpha m + k alpha^2 >= 1), and from 4 on
// the residual never settles.
std::string repeat_warning(double alpha, double m);

// The magnitude that stands for every kept entry.
struct ScaleRule {
  // nullopt: mean |kept|, which contracts at any density; a number: alpha times the standard
  // deviation, the paper's rule for one-shot files.
  std::optional<double> alpha;

  // `mean` or `std:ALPHA`; InvalidArgument for anything else and for an alpha that is not positive.
  static ScaleRule parse(const std::string& text);
  std::string str() const;
  // `mean_kept`: mean magnitude of the kept entries; `standard_deviation`: of all.
  double scale(double mean_kept, double standard_deviation) const;
  // repeat_warning() of this scale for such a delta; "" for the mean.
  std::string repeat_warning(double mean_kept, double standard_deviation) const;
};

}  // namespace thinwire::peft
