// Streams and events of the fake device: queues that threads of their own work off.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "thinwire/tests/support/fake_gpu/detector.h"
#include "thinwire/tests/support/fake_gpu/order.h"

namespace thinwire::fake_gpu {

class Stream;
class Event;

// The device of the calling thread, cudaSetDevice()'s.
int current_device();
void set_current_device(int device);

Stream* make_stream(int device);
Stream* default_stream(int device);
// Of a cudaStream_t: null and CUDA's constants are the current device's default stream.
Stream* stream_of(const void* handle);
int device_of(const Stream* stream);

struct Work {
  std::string what;
  std::function<void()> run = {};
  // What it touches; what it finds out while it runs, it tells note() with current_task().
  std::vector<Access> accesses = {};
};
void enqueue(Stream* stream, Work work);
// Inside of work: its task. Elsewhere null.
const std::shared_ptr<const Task>& current_task();

// As the functions of CUDA; `call` is its name, for findings(). The waits count as the host's.
bool query(Stream* stream);
void synchronize(Stream* stream, const char* call);
void synchronize_device(int device, const char* call);

Event* make_event(bool with_time);
void destroy(Event* event);
void record(Event* event, Stream* stream);
void wait(Stream* stream, Event* event);
bool query(Event* event);
void synchronize(Event* event, const char* call);
float milliseconds_between(const Event* from, const Event* to);

// Until all that is queued has run. The emulation's own: no wait of the host, orders nothing.
void run_everything();

}  // namespace thinwire::fake_gpu
