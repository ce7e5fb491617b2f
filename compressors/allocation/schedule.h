// When statistics are taken, when plans are made and when they take effect.
#pragma once

#include <cstdint>

#include "thinwire/compressors/allocation/policy.h"

namespace thinwire::lgreco {

// A pure function of the policy and the step, so that all ranks do everything at the same steps
// without asking each other. Steps count from 0.
//
//   first = max(warm-up, policy.first, window); plan k is made from the `window` steps before first
//   + k · period
//
//   ... | window | first + k·period | lag steps | gather | lag steps | switch ...
//
// Before "first + k·period" the statistics are exchanged; then each rank measures the curves of the
// layers that it owns, away from the training thread. Before "gather" the ranks share the curves;
// then each solves. Before "switch" the plan takes effect. Ranks that are not ready by then wait;
// the lag, a fiftieth of the period (1 … 10, less where two of them do not fit between windows),
// makes that rare. Value type.
class Schedule {
 public:
  // `least_warmup`: steps that are uncompressed even if the policy asks for fewer.
  explicit Schedule(const Policy& policy, std::int64_t least_warmup = 0);

  std::int64_t warmup() const { return warmup_; }
  std::int64_t first() const { return first_; }
  std::int64_t lag() const { return lag_; }
  std::int64_t window() const { return window_; }

  bool opens_window(std::int64_t step) const;   // the first step of a window
  bool observes(std::int64_t step) const;       // the step's gradients count
  bool closes_window(std::int64_t step) const;  // the last step of a window
  bool gathers_before(std::int64_t step) const;
  bool switches_before(std::int64_t step) const;

 private:
  bool on_period(std::int64_t step) const;

  std::int64_t warmup_, window_, period_, first_, lag_;
};

}  // namespace thinwire::lgreco
