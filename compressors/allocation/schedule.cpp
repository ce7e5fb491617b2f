#include "thinwire/compressors/allocation/schedule.h"

#include <algorithm>

namespace thinwire::lgreco {

Schedule::Schedule(const Policy& policy, std::int64_t least_warmup)
    : warmup_(std::max(policy.warmup, least_warmup)),
      window_(policy.window),
      period_(policy.period),
      first_(std::max({warmup_, policy.first, window_})) {
  constexpr std::int64_t kPart = 50, kMost = 10;
  // The statistics of the next window may only be begun when the last ones have been measured.
  const std::int64_t room = (period_ - window_) / 2;
  lag_ = std::min(std::clamp<std::int64_t>(period_ / kPart, 1, kMost), room);
}

bool Schedule::on_period(std::int64_t step) const {
  return step >= first_ && (step - first_) % period_ == 0;
}

bool Schedule::opens_window(std::int64_t step) const {
  return on_period(step + window_);
}

bool Schedule::observes(std::int64_t step) const {
  if (step < first_) return step >= first_ - window_;
  return (step - first_) % period_ >= period_ - window_;
}

bool Schedule::closes_window(std::int64_t step) const {
  return on_period(step + 1);
}

bool Schedule::gathers_before(std::int64_t step) const {
  return on_period(step - lag_);
}

bool Schedule::switches_before(std::int64_t step) const {
  return on_period(step - 2 * lag_);
}

}  // namespace thinwire::lgreco
