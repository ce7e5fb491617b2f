#include "thinwire/torch_ext/gradient_exchange.h"

#include <utility>

#include "thinwire/comm/process_group.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/agreed_plan.h"

namespace thinwire {
namespace {

double per_step(std::uint64_t bytes, std::int64_t steps) {
  return steps == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(steps);
}

comm::AveragerOptions averager_options(const CompressionOptions& options, Timeline* timeline) {
  return {.seed = options.seed,
          .check_replicas_every = Env::get().check_replicas_every,
          .timeline = timeline};
}

}  // namespace

double CommunicationSummary::wire_bytes_per_step() const {
  return steps > warmup_steps ? per_step(after_warmup.sent_bytes, steps - warmup_steps)
                              : per_step(total.sent_bytes, steps);
}

double CommunicationSummary::dense_bytes_per_step() const {
  return steps > warmup_steps ? per_step(after_warmup.dense_bytes, steps - warmup_steps)
                              : per_step(total.dense_bytes, steps);
}

double CommunicationSummary::ratio() const {
  return wire_bytes_per_step() == 0 ? 1.0 : dense_bytes_per_step() / wire_bytes_per_step();
}

GradientExchange::GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                   const std::string& model, const std::vector<LayerInfo>& layers,
                                   CompressionOptions options, Timeline* timeline)
    : GradientExchange(group, detail::next_name(*group, "gradients"), model, layers,
                       std::move(options), timeline) {}

GradientExchange::GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                   const std::string& name, const std::string& model,
                                   const std::vector<LayerInfo>& layers, CompressionOptions options,
                                   Timeline* timeline)
    : options_(std::move(options)),
      plan_(detail::agreed_plan(*group, name, "the compression of the gradients", model, layers,
                                options_)),
      timeline_(timeline),
      averager_(comm::duplicate(group, name), averager_options(options_, timeline)),
      thread_(std::make_unique<comm::CommunicationThread>()) {}

void GradientExchange::submit(comm::Bucket bucket, bool last,
                              comm::CommunicationThread::Done done) {
  const auto queued = Timeline::Clock::now();
  thread_->submit(
      [this, bucket = std::move(bucket), last, queued, step = submitted_steps_]() mutable {
        if (timeline_) {
          timeline_->record(concat("bucket ", bucket.index), "QUEUE", queued,
                            Timeline::Clock::now());
        }
        const bool warmup = step < options_.warmup_steps;
        averager_.average(bucket, warmup ? uncompressed_ : plan_, step);
        if (last) finish_step();
      },
      std::move(done));
  if (last) ++submitted_steps_;
}

void GradientExchange::finish_step() {
  const comm::WireUse now = averager_.wire_use();
  std::lock_guard lock(mutex_);
  ++summary_.steps;
  summary_.total = now;
  if (summary_.steps <= options_.warmup_steps) {
    ++summary_.warmup_steps;
  } else {
    summary_.after_warmup.sent_bytes += now.sent_bytes - at_last_step_.sent_bytes;
    summary_.after_warmup.dense_bytes += now.dense_bytes - at_last_step_.dense_bytes;
  }
  at_last_step_ = now;
}

CommunicationSummary GradientExchange::summary() const {
  std::lock_guard lock(mutex_);
  return summary_;
}

}  // namespace thinwire
