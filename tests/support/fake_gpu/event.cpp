// Events of streams.
#include <chrono>
#include <memory>
#include <mutex>

#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/queue.h"

namespace thinwire::fake_gpu {
namespace {

using SteadyClock = std::chrono::steady_clock;

}  // namespace

class Event {
 public:
  explicit Event(bool takes_time) : with_time(takes_time) {}
  const bool with_time;
  // Under order_mutex():
  Stream* stream = nullptr;  // null: never recorded
  std::uint64_t number = 0;  // of the stream's last task at the recording
  Clock clock = {};
  std::shared_ptr<SteadyClock::time_point> time = {};
};

namespace {

// An event may be recorded anew while somebody waits: they wait for what it was.
Event as_recorded(const Event* event) {
  const std::lock_guard lock(order_mutex());
  return *event;
}

}  // namespace

Event* make_event(bool with_time) {
  return new Event(with_time);
}

void destroy(Event* event) {
  delete event;
}

void record(Event* event, Stream* stream) {
  const std::lock_guard lock(order_mutex());
  if (event->with_time) {
    event->time = std::make_shared<SteadyClock::time_point>();
    stream->push({"event record", [time = event->time] { *time = SteadyClock::now(); }});
  }
  event->clock = stream->clock();
  event->clock.join(host_clock());
  event->stream = stream;
  event->number = stream->queued();
}

void wait(Stream* stream, Event* event) {
  const std::lock_guard lock(order_mutex());
  if (event->stream == nullptr || event->stream == stream) return;
  ++counting().event_waits;
  stream->clock().join(event->clock);
  stream->push({"event wait", [of = event->stream, n = event->number] { of->wait_for(n); }});
}

bool query(Event* event) {
  const Event now = as_recorded(event);
  if (now.stream == nullptr) return true;
  if (!now.stream->has_done(now.number)) return false;
  const std::lock_guard lock(order_mutex());
  host_joins(now.clock, now.stream->index(), now.number);
  return true;
}

void synchronize(Event* event, const char* call) {
  host_waits(call);
  const Event now = as_recorded(event);
  if (now.stream == nullptr) return;
  now.stream->wait_for(now.number);
  const std::lock_guard lock(order_mutex());
  host_joins(now.clock, now.stream->index(), now.number);
}

float milliseconds_between(const Event* from, const Event* to) {
  const Event a = as_recorded(from), b = as_recorded(to);
  if (a.time == nullptr || b.time == nullptr) return 0;
  return std::chrono::duration<float, std::milli>(*b.time - *a.time).count();
}

}  // namespace thinwire::fake_gpu
