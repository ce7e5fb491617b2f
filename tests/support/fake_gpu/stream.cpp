#include "thinwire/tests/support/fake_gpu/stream.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/queue.h"
#include "thinwire/tests/support/fake_gpu/settings.h"

namespace thinwire::fake_gpu {
namespace {

thread_local int device_of_thread = 0;

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

void host_waited_for(Stream* stream, std::uint64_t number) {
  const std::lock_guard lock(order_mutex());
  host_joins(stream->clock(), stream->index(), number);
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
  name_stream_number(stream_of(stream)->index(), "'" + std::move(name) + "'");
}

void enqueue(Stream* stream, Work work) {
  for (Access& access : work.accesses) access = named(access);
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

bool waits_for(const void* later, const void* earlier) {
  Stream* const after = stream_of(later);
  Stream* const before = stream_of(earlier);
  const std::lock_guard lock(order_mutex());
  const std::uint64_t seen =
      std::max(after->clock().at(before->index()), host_clock().at(before->index()));
  return seen >= before->queued();
}

}  // namespace thinwire::fake_gpu
