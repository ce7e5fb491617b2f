// A GradientExchange whose ranks may change, see Note [Changing worlds].
#include <c10/core/StreamGuard.h>

#include <optional>

#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire {

void GradientExchange::begin_step() {
  thread_->call([&] {
    std::optional<c10::StreamGuard> stream;
    if (device_stream_) stream.emplace(*device_stream_);
    averager_.mark();
  });
  steps_at_mark_ = submitted_steps_;
}

void GradientExchange::wait_for_device() {
  if (steps_at_mark_ < 0 || !device_stream_) return;
  thread_->call([this] { averager_.settle(); });
}

detail::SavedGradients GradientExchange::leave(bool undo) {
  thread_.reset();
  std::optional<c10::StreamGuard> stream;
  if (device_stream_) stream.emplace(*device_stream_);
  averager_.abandon();
  if (undo && steps_at_mark_ >= 0) {
    averager_.undo();
    submitted_steps_ = steps_at_mark_;
  }
  return saved_now(/*with_next_plan=*/false);
}

}  // namespace thinwire
