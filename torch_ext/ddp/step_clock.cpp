#include "thinwire/torch_ext/ddp/step_clock.h"

#include <algorithm>
#include <utility>

#include "thinwire/common/median.h"

namespace thinwire {
namespace {

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

comm::PhaseSeconds difference(const comm::PhaseSeconds& a, const comm::PhaseSeconds& b) {
  comm::PhaseSeconds result;
  for (std::size_t i = 0; i < comm::kPhases.size(); ++i) {
    result.wall[i] = a.wall[i] - b.wall[i];
    result.cpu[i] = a.cpu[i] - b.cpu[i];
  }
  return result;
}

}  // namespace

void StepClock::forward_begins() {
  const std::lock_guard lock(mutex_);
  if (!forward_begun_) forward_begun_ = Clock::now();
}

void StepClock::forward_ends() {
  const std::lock_guard lock(mutex_);
  forward_ended_ = Clock::now();
}

void StepClock::bucket_ready(std::int64_t number, const comm::Bucket& bucket, bool last) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  Step& step = step_of(number);
  if (step.number != number) {
    step = {};
    step.number = number;
    step.forward_begun = std::exchange(forward_begun_, std::nullopt);
    step.forward_ended = std::exchange(forward_ended_, std::nullopt);
  }
  // After a backward pass that an exception ended the same step begins anew.
  if (bucket_of(step, bucket.index)) step.buckets.clear();
  step.buckets.push_back({.index = bucket.index,
                          .bytes = static_cast<std::int64_t>(bucket.buffer.nbytes()),
                          .ready = now,
                          .begun = now,
                          .finished = now});
  if (last) step.last_ready = now;
  // Names are many; they change when the Reducer rebuilds its buckets.
  if (layers_.size() <= bucket.index) layers_.resize(bucket.index + 1);
  std::vector<std::string>& names = layers_[bucket.index];
  if (names.size() == bucket.layers.size() &&
      std::ranges::equal(names, bucket.layers, {}, {}, &comm::BucketLayer::name)) {
    return;
  }
  names.clear();
  for (const comm::BucketLayer& layer : bucket.layers) names.push_back(layer.name);
}

StepClock::BucketTimes* StepClock::bucket_of(Step& step, std::size_t index) {
  const auto found = std::ranges::find(step.buckets, index, &BucketTimes::index);
  return found == step.buckets.end() ? nullptr : &*found;
}

void StepClock::bucket_begins(std::int64_t number, std::size_t index) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (BucketTimes* bucket = bucket_of(step_of(number), index)) bucket->begun = now;
}

void StepClock::bucket_ends(std::int64_t number, std::size_t index) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  if (BucketTimes* bucket = bucket_of(step_of(number), index)) bucket->finished = now;
}

void StepClock::step_ends(std::int64_t number, const comm::PhaseSeconds& total) {
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  Step& step = step_of(number);
  if (step.number != number) return;
  step.finished = now;
  step.phases = difference(total, total_);
  step.ended = true;
  total_ = total;
  last_ended_ = number;
  if (timeline_) draw(step);
}

StepClock::Time StepClock::origin_of(const Step& step) {
  return step.forward_ended.value_or(step.buckets.front().ready);
}

void StepClock::draw(const Step& step) const {
  if (step.forward_begun && step.forward_ended) {
    timeline_->record("training", "FORWARD", *step.forward_begun, *step.forward_ended);
  }
  timeline_->record("training", "BACKWARD", origin_of(step), step.last_ready);
  timeline_->record("training", "WAIT", step.last_ready, step.finished);
}

StepProfile StepClock::profile(std::int64_t steps) const {
  const std::lock_guard lock(mutex_);
  StepProfile profile;
  if (last_ended_ < 0) return profile;
  const auto at = [&](std::int64_t number) -> const Step& {
    return steps_[static_cast<std::size_t>(number % kProfiledSteps)];
  };
  const Step& newest = at(last_ended_);
  std::vector<const Step*> ended;
  // Steps before the Reducer's buckets were rebuilt are of another kind.
  for (std::int64_t n = last_ended_; n >= 0 && last_ended_ - n < std::min(steps, kProfiledSteps);
       --n) {
    const Step& step = at(n);
    if (step.number != n || !step.ended || step.buckets.size() != newest.buckets.size()) break;
    ended.push_back(&step);
  }
  const auto median_of = [&](const auto& value) {
    std::vector<double> values;
    for (const Step* step : ended) values.push_back(value(*step));
    return median(std::move(values));
  };
  profile.steps = static_cast<std::int64_t>(ended.size());
  std::vector<double> periods;
  for (const Step* step : ended) {
    if (step->number == 0) continue;
    const Step& before = at(step->number - 1);
    if (before.number != step->number - 1 || !before.ended) continue;
    periods.push_back(seconds_between(before.finished, step->finished));
  }
  profile.step = median(std::move(periods));
  profile.forward = median_of([](const Step& step) {
    return step.forward_begun && step.forward_ended
               ? seconds_between(*step.forward_begun, *step.forward_ended)
               : 0.0;
  });
  profile.backward =
      median_of([](const Step& step) { return seconds_between(origin_of(step), step.last_ready); });
  profile.exposed =
      median_of([](const Step& step) { return seconds_between(step.last_ready, step.finished); });
  using comm::Phase;
  const auto phase = [&](Phase which, bool cpu) {
    return median_of([&](const Step& step) {
      return cpu ? step.phases.cpu_of(which) : step.phases.wall_of(which);
    });
  };
  profile.compress_cpu = phase(Phase::kCompress, true);
  profile.decompress_cpu = phase(Phase::kDecompress, true);
  profile.compress = phase(Phase::kCompress, false);
  profile.exchange = phase(Phase::kExchange, false);
  profile.decompress = phase(Phase::kDecompress, false);
  for (std::size_t b = 0; b < newest.buckets.size(); ++b) {
    const BucketTimes& newest_times = newest.buckets[b];
    const auto since_origin = [&](auto member) {
      return median_of([&](const Step& step) {
        return seconds_between(origin_of(step), step.buckets[b].*member);
      });
    };
    profile.buckets.push_back({.index = newest_times.index,
                               .bytes = newest_times.bytes,
                               .layers = layers_[newest_times.index],
                               .ready = since_origin(&BucketTimes::ready),
                               .begun = since_origin(&BucketTimes::begun),
                               .finished = since_origin(&BucketTimes::finished)});
  }
  return profile;
}

}  // namespace thinwire
