// Notes when the parts of a step happen, for the profile and the timeline.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/common/timeline.h"
#include "thinwire/torch_ext/ddp/step_profile.h"

namespace thinwire {

// A few readings of the clock for every bucket. Thread-safe: the forward and backward pass and the
// communication thread note what is theirs.
//
// With a timeline every step leaves the spans FORWARD, BACKWARD and WAIT on the track "training".
class StepClock {
 public:
  explicit StepClock(Timeline* timeline) : timeline_(timeline) {}

  // Of the several forward passes that may come before one exchange the first begins the step.
  void forward_begins();
  void forward_ends();
  void bucket_ready(std::int64_t step, const comm::Bucket& bucket, bool last);
  void bucket_begins(std::int64_t step, std::size_t index);
  void bucket_ends(std::int64_t step, std::size_t index);
  // `total`: of all steps so far.
  void step_ends(std::int64_t step, const comm::PhaseSeconds& total);

  // Over the last so many steps that have ended, at most kProfiledSteps.
  StepProfile profile(std::int64_t steps = kProfiledSteps) const;

 private:
  using Time = Clock::time_point;
  struct BucketTimes {
    std::size_t index = 0;
    std::int64_t bytes = 0;
    Time ready, begun, finished;
  };
  struct Step {
    std::int64_t number = -1;
    std::optional<Time> forward_begun, forward_ended;
    Time last_ready, finished;
    bool ended = false;
    std::vector<BucketTimes> buckets;
    comm::PhaseSeconds phases;
  };
  Step& step_of(std::int64_t number) {
    return steps_[static_cast<std::size_t>(number % kProfiledSteps)];
  }
  static BucketTimes* bucket_of(Step& step, std::size_t index);
  // The time from which the step's times count.
  static Time origin_of(const Step& step);
  void draw(const Step& step) const;

  Timeline* const timeline_;
  mutable std::mutex mutex_;
  std::array<Step, kProfiledSteps> steps_;
  std::optional<Time> forward_begun_, forward_ended_;  // of the step to come
  std::int64_t last_ended_ = -1;
  comm::PhaseSeconds total_;
  std::vector<std::vector<std::string>> layers_;  // by index of the bucket, of the last step
};

}  // namespace thinwire
