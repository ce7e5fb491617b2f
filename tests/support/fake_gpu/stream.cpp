#include "thinwire/tests/support/fake_gpu/stream.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/settings.h"

namespace thinwire::fake_gpu {
namespace {

using SteadyClock = std::chrono::steady_clock;
using TaskPtr = std::shared_ptr<const Task>;

thread_local int device_of_thread = 0;
thread_local TaskPtr task_of_thread;

// Guards every Clock: what is queued, recorded and waited for happens in one order for all.
std::mutex& order_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}
// What the host has waited for. All threads of the host share it: an order between them that only
// they know (a mutex, a join) would be missed otherwise.
Clock& host_clock() {
  static auto* clock = new Clock;
  return *clock;
}

}  // namespace

// Lives until the process ends.
class Stream {
 public:
  Stream(int device, std::size_t index, bool is_default)
      : device_(device), index_(index), is_default_(is_default) {}

  int device() const { return device_; }
  std::size_t index() const { return index_; }
  Clock& clock() { return clock_; }  // under order_mutex()

  // Of the last task that was queued.
  std::uint64_t queued() const {
    const std::lock_guard lock(mutex_);
    return queued_;
  }

  // Under order_mutex().
  void push(Work work) {
    const auto due = SteadyClock::now() + delay(is_default_);
    clock_.join(host_clock());
    const std::lock_guard lock(mutex_);
    if (queued_++ == 0) std::thread([this] { work_off(); }).detach();
    clock_.raise(index_, queued_);
    auto task = std::make_shared<Task>(Task{std::move(work.what), index_, queued_, clock_});
    queue_.push_back({std::move(task), std::move(work.run), std::move(work.accesses), due});
    changed_.notify_all();
  }

  void wait_for(std::uint64_t number) {
    std::unique_lock lock(mutex_);
    hurry(number);
    changed_.wait(lock, [&] { return done_ >= number; });
  }
  // Asking hurries the stream too: a loop that asks again and again would be slow otherwise.
  bool has_done(std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    hurry(number);
    return done_ >= number;
  }

 private:
  struct Entry {
    TaskPtr task;
    std::function<void()> run;
    std::vector<Access> accesses;
    SteadyClock::time_point due;
  };

  void hurry(std::uint64_t number) {
    wanted_ = std::max(wanted_, number);
    changed_.notify_all();
  }

  void work_off() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return !queue_.empty(); });
      while (wanted_ <= done_ && SteadyClock::now() < queue_.front().due)
        changed_.wait_until(lock, queue_.front().due);
      Entry entry = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      task_of_thread = entry.task;
      for (const Access& access : entry.accesses) note(entry.task, access);
      if (entry.run) entry.run();
      task_of_thread = nullptr;
      entry = {};
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  const int device_;
  const std::size_t index_;
  const bool is_default_;
  Clock clock_;  // under order_mutex()
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::uint64_t queued_ = 0, done_ = 0;
  std::uint64_t wanted_ = 0;  // somebody waits until so many are done
};

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

struct Streams {
  std::mutex mutex;
  std::vector<Stream*> all;
};
Streams& streams() {
  static auto* one = new Streams;
  return *one;
}

Stream* add_stream(int device, bool is_default) {
  Streams& known = streams();
  const std::lock_guard lock(known.mutex);
  known.all.push_back(new Stream(device, known.all.size(), is_default));
  return known.all.back();
}

std::vector<Stream*> all_streams() {
  Streams& known = streams();
  const std::lock_guard lock(known.mutex);
  return known.all;
}

void host_joins(const Clock& clock, std::size_t stream, std::uint64_t number) {
  if (emulation_waits()) return;
  host_clock().join(clock);
  host_clock().raise(stream, number);
}

void host_waited_for(Stream* stream, std::uint64_t number) {
  const std::lock_guard lock(order_mutex());
  host_joins(stream->clock(), stream->index(), number);
}

// An event may be recorded anew while somebody waits: they wait for what it was.
Event as_recorded(const Event* event) {
  const std::lock_guard lock(order_mutex());
  return *event;
}

}  // namespace

int current_device() {
  return device_of_thread;
}
void set_current_device(int device) {
  device_of_thread = device;
}

Stream* make_stream(int device) {
  return add_stream(device, /*is_default=*/false);
}

Stream* default_stream(int device) {
  static const std::vector<Stream*>* const all = [] {
    auto* made = new std::vector<Stream*>;
    for (int d = 0; d < device_count(); ++d) {
      made->push_back(add_stream(d, /*is_default=*/true));
      name_stream_number(made->back()->index(), "'default of device " + std::to_string(d) + "'");
    }
    return made;
  }();
  return (*all)[static_cast<std::size_t>(device)];
}

Stream* stream_of(const void* handle) {
  // cudaStreamLegacy and cudaStreamPerThread are 1 and 2.
  if (reinterpret_cast<std::uintptr_t>(handle) <= 2) return default_stream(current_device());
  return static_cast<Stream*>(const_cast<void*>(handle));
}

int device_of(const Stream* stream) {
  return stream->device();
}

void name_stream(const void* stream, std::string name) {
  name_stream_number(stream_of(stream)->index(), "'" + name + "'");
}

const std::shared_ptr<const Task>& current_task() {
  return task_of_thread;
}

void enqueue(Stream* stream, Work work) {
  const std::lock_guard lock(order_mutex());
  stream->push(std::move(work));
}

bool query(Stream* stream) {
  const std::uint64_t number = stream->queued();
  const bool done = stream->has_done(number);
  if (done) host_waited_for(stream, number);
  return done;
}

void synchronize(Stream* stream, const char* call) {
  host_waits(call);
  const std::uint64_t number = stream->queued();
  stream->wait_for(number);
  host_waited_for(stream, number);
}

void synchronize_device(int device, const char* call) {
  host_waits(call);
  for (Stream* stream : all_streams()) {
    if (stream->device() != device) continue;
    const std::uint64_t number = stream->queued();
    stream->wait_for(number);
    host_waited_for(stream, number);
  }
}

void run_everything() {
  const EmulationWait own;
  for (Stream* stream : all_streams()) stream->wait_for(stream->queued());
}

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

bool waits_for(const void* later, const void* earlier) {
  Stream* const after = stream_of(later);
  Stream* const before = stream_of(earlier);
  const std::lock_guard lock(order_mutex());
  const std::uint64_t seen =
      std::max(after->clock().at(before->index()), host_clock().at(before->index()));
  return seen >= before->queued();
}

}  // namespace thinwire::fake_gpu
