#include "thinwire/torch_ext/ddp/measured_steps.h"

#include <algorithm>

namespace thinwire {

MeasuredSteps measured_steps(const StepProfile& profile) {
  MeasuredSteps steps{
      .times = {.step = profile.step, .exposed = profile.exposed, .exchange = profile.exchange}};
  double free = 0;
  for (const BucketProfile& bucket : profile.buckets) {
    const double begun = std::max(bucket.begun, free);
    free = std::max(free, bucket.finished);
    steps.buckets.push_back({.layers = bucket.layers,
                             .bytes = static_cast<double>(bucket.bytes),
                             .ready = bucket.ready,
                             .work = std::max(0.0, bucket.finished - begun)});
  }
  return steps;
}

}  // namespace thinwire
