#include "thinwire/comm/predict/step_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Messages one after another, in the order in which they were handed over.
class SharedLink {
 public:
  SharedLink(double burst, double refill, double tokens)
      : burst_(burst), refill_(refill), tokens_(tokens) {}

  // What may pass at once at `now`, after all that was sent.
  double tokens_at(double now) const {
    return std::min(burst_, tokens_ + std::max(0.0, now - free_) * refill_);
  }

  // When a message handed over at `now` has arrived.
  double send(double now, const ExchangeOp& op) {
    const double begin = std::max(now, free_);
    tokens_ = tokens_at(begin);
    const double at_once = std::min(op.bytes, tokens_);
    tokens_ -= at_once;
    const double seconds = op.seconds + (op.bytes - at_once) * op.per_byte;
    free_ = begin + seconds;
    busy += seconds;
    return free_;
  }

  double busy = 0;

 private:
  const double burst_, refill_;
  double free_ = 0, tokens_;
};

// The step as it goes. Each of the two threads has something to compute, waits for a time, or waits
// for the other one.
class StepRun {
 public:
  // `tokens`: what the link lets through at once when the step begins.
  StepRun(const StepWork& work, double tokens)
      : work_(work), link_(work.burst_bytes, work.burst_refill, tokens) {
    plan_training();
  }

  // The same for the next step, after run().
  double tokens_left() const { return link_.tokens_at(now_); }

  StepPrediction run() {
    while (!training_.empty() || !communication_.empty()) step();
    StepPrediction prediction{.step = now_,
                              .backward = last_ready_ - work_.forward,
                              .exposed = last_mean_ - last_ready_,
                              .network = link_.busy};
    for (const PredictedBucket& bucket : work_.buckets) {
      prediction.coding += bucket.ops.coding_seconds();
      prediction.sent_bytes += bucket.ops.sent_bytes();
    }
    return prediction;
  }

 private:
  struct Task {
    enum class Kind {
      kCompute,
      kSubmit,
      kPost,
      kWaitMessage,
      kWaitBucket,
      kWaitAll,
      kChoose,
      kNote
    };
    Kind kind;
    double seconds = 0;
    std::size_t bucket = 0;
    ExchangeOp op = {};
  };
  using Kind = Task::Kind;

  void plan_training() {
    training_.push_back({Kind::kCompute, work_.forward});
    double before = 0;
    for (std::size_t b = 0; b < work_.buckets.size(); ++b) {
      const double ready = std::max(before, work_.buckets[b].ready);
      training_.push_back({Kind::kCompute, ready - before});
      training_.push_back({Kind::kSubmit, 0, b});
      before = ready;
    }
    training_.push_back({Kind::kCompute, std::max(0.0, work_.backward - before)});
    training_.push_back({Kind::kNote});
    training_.push_back({Kind::kWaitAll});
    training_.push_back({Kind::kCompute, work_.rest});
    std::reverse(training_.begin(), training_.end());
    if (!work_.buckets.empty()) communication_.push_back({Kind::kWaitBucket, 0, 0});
  }

  // Puts a bucket's part before what the communication thread has to do.
  void insert(std::size_t bucket, const std::vector<ExchangeOp>& ops) {
    for (auto op = ops.rbegin(); op != ops.rend(); ++op) {
      const Kind kind = op->kind == ExchangeOp::Kind::kCode   ? Kind::kCompute
                        : op->kind == ExchangeOp::Kind::kPost ? Kind::kPost
                                                              : Kind::kWaitMessage;
      communication_.push_back({kind, op->seconds, bucket, *op});
    }
  }

  // GradientExchange::exchange(): the bucket before is finished when this one's first messages are
  // on their way, or as soon as nothing else is there to do.
  void begin_bucket(std::size_t b) {
    const bool last = b + 1 == work_.buckets.size();
    if (last) {
      communication_.push_back({Kind::kCompute, 0});
      insert(b, work_.buckets[b].ops.finish);
    } else {
      communication_.push_back({Kind::kChoose, 0, b});
    }
    insert(b, work_.buckets[b].ops.advance);
    if (unfinished_) insert(*unfinished_, work_.buckets[*unfinished_].ops.finish);
    unfinished_ = b;
    insert(b, work_.buckets[b].ops.begin);
  }

  // Does what takes no time; returns whether there was anything.
  bool settle_communication() {
    if (communication_.empty()) return false;
    const Task task = communication_.back();
    switch (task.kind) {
      case Kind::kWaitBucket:
        if (submitted_ <= task.bucket) return false;
        communication_.pop_back();
        begin_bucket(task.bucket);
        return true;
      case Kind::kChoose:
        communication_.pop_back();
        communication_.push_back({Kind::kWaitBucket, 0, task.bucket + 1});
        if (submitted_ <= task.bucket + 1) {
          insert(task.bucket, work_.buckets[task.bucket].ops.finish);
          unfinished_.reset();
        }
        return true;
      case Kind::kPost:
        communication_.pop_back();
        arrivals_[{task.bucket, task.op.message}] = link_.send(now_, task.op);
        return true;
      case Kind::kWaitMessage:
        if (arrivals_.at({task.bucket, task.op.message}) > now_) return false;
        communication_.pop_back();
        return true;
      default:
        if (task.seconds > 0) return false;
        communication_.pop_back();
        return true;
    }
  }

  bool settle_training() {
    if (training_.empty()) return false;
    const Task task = training_.back();
    if (task.kind == Kind::kWaitAll && !communication_.empty()) return false;
    if (task.kind == Kind::kCompute && task.seconds > 0) return false;
    if (task.kind == Kind::kSubmit) submitted_ = task.bucket + 1;
    if (task.kind == Kind::kNote) last_ready_ = now_;
    if (task.kind == Kind::kWaitAll)
      last_mean_ = now_ += work_.buckets.empty() ? 0 : work_.agreement;
    training_.pop_back();
    return true;
  }

  void step() {
    while (settle_training() || settle_communication()) {
    }
    if (training_.empty() && communication_.empty()) return;
    const auto computes = [](const std::vector<Task>& tasks) {
      return !tasks.empty() && tasks.back().kind == Kind::kCompute;
    };
    const bool both = computes(training_) && computes(communication_);
    const double speed = both ? std::min(1.0, work_.cores / 2) : 1.0;
    double next = kNever;
    for (const auto* tasks : {&training_, &communication_}) {
      if (computes(*tasks)) next = std::min(next, now_ + tasks->back().seconds / speed);
    }
    if (!communication_.empty() && communication_.back().kind == Kind::kWaitMessage) {
      const Task& task = communication_.back();
      next = std::min(next, arrivals_.at({task.bucket, task.op.message}));
    }
    THINWIRE_ASSERT(next < kNever);
    for (auto* tasks : {&training_, &communication_}) {
      if (!computes(*tasks)) continue;
      double& left = tasks->back().seconds;
      // What rounding leaves over is done.
      left -= (next - now_) * speed;
      if (left < 1e-12) left = 0;
    }
    now_ = next;
  }

  const StepWork& work_;
  SharedLink link_;
  double now_ = 0, last_ready_ = 0, last_mean_ = 0;
  // To do, the next at the end.
  std::vector<Task> training_, communication_;
  std::size_t submitted_ = 0;
  std::optional<std::size_t> unfinished_;  // the bucket that waits for its finish
  std::map<std::pair<std::size_t, int>, double> arrivals_;
};

}  // namespace

StepPrediction predict_step(const StepWork& work) {
  check(work.cores > 0 && work.forward >= 0 && work.backward >= 0 && work.rest >= 0,
        "a step takes no negative time and needs a processor, got ", work.forward, ", ",
        work.backward, " and ", work.rest, " s on ", work.cores, " processors");
  // A step begins with what the one before has left of the burst: a link that never rests gives
  // back nothing, and the bytes of a step then take the time that its rate says.
  constexpr int kMostSteps = 100;
  constexpr double kSame = 1e-3;
  double tokens = work.burst_bytes;
  for (int number = 1;; ++number) {
    StepRun step(work, tokens);
    const StepPrediction prediction = step.run();
    const double change = std::abs(step.tokens_left() - tokens);
    if (change <= kSame * work.burst_bytes || number == kMostSteps) return prediction;
    tokens = step.tokens_left();
  }
}

}  // namespace thinwire::comm
