// Sums of doubles that are rounded once, at the end, so that a total depends neither on the order
// of the layers nor on how it was reached.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

namespace thinwire::lgreco {

// Keeps the exact sum as a few doubles that do not overlap, smallest first. Each new value is
// carried through them with the error-free two-sum of Knuth (Shewchuk, "Adaptive precision
// floating-point arithmetic", 1997, "grow expansion"). The terms and their sum must be finite.
// Not thread-safe.
class ExactSum {
 public:
  void add(double x) {
    std::size_t kept = 0;
    for (double part : parts_) {
      const double sum = x + part;
      const double shadow = sum - x;
      const double lost = (x - (sum - shadow)) + (part - shadow);
      if (lost != 0) parts_[kept++] = lost;
      x = sum;
    }
    parts_.resize(kept);
    parts_.push_back(x);
  }

  // The double nearest to the exact sum (ties to even), hence monotone in it.
  double value() const {
    double high = 0, low = 0;
    std::size_t i = parts_.size();
    while (i > 0) {
      const double before = high;
      const double part = parts_[--i];
      high = before + part;
      low = part - (high - before);
      if (low != 0) break;
    }
    // A half-way case was rounded to even without knowledge of what lies below it.
    if (i > 0 && ((low < 0 && parts_[i - 1] < 0) || (low > 0 && parts_[i - 1] > 0))) {
      const double twice = low * 2;
      const double other = high + twice;
      if (twice == other - high) high = other;
    }
    return high;
  }

 private:
  std::vector<double> parts_;
};

template <typename Range>
double exact_sum(const Range& values) {
  ExactSum sum;
  for (double value : values) sum.add(value);
  return sum.value();
}

}  // namespace thinwire::lgreco
