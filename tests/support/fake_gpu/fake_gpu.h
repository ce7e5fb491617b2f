// A CUDA device made of host threads, under the real LibTorch: what tests ask of it.
//
// A library that stands before libcudart and libnccl answers their calls (cudart/, nccl/), and a
// second one runs ATen's CUDA operators on the CPU (aten/). Everything else is the user's code
// path: CUDA tensors, the caching allocator, streams and events of c10, ProcessGroupNCCL, Reducer.
//
// Device memory cannot be touched by the host. Work runs on a thread of its stream, when the
// schedule says so. Whatever the numbers, findings() tells what a GPU would not: accesses that
// nothing orders, use after free, reads of bytes never written, accesses out of bounds, waits of
// the host where a NoHostSync forbids them.
//
// All functions are thread-safe. A stream is a cudaStream_t; null is the current device's default.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace thinwire::fake_gpu {

// When work runs that nothing waits for.
enum class Schedule : std::uint8_t {
  kEager,     // as soon as its stream gets to it
  kLazy,      // some milliseconds late
  kRandom,    // either
  kMainLate,  // lazy on default streams, eager on others
  kSideLate,  // the reverse
};
inline constexpr Schedule kSchedules[] = {Schedule::kEager, Schedule::kLazy, Schedule::kRandom,
                                          Schedule::kMainLate, Schedule::kSideLate};
const char* name_of(Schedule schedule);

// Of work that is queued from now on. FAKE_GPU_SCHEDULE says the first one, else it is kRandom.
void set_schedule(Schedule schedule);

// Faults found so far, each a sentence; the list is empty afterwards. Lets all queued work run
// first, which is no wait of the host as NoHostSync and the detector see it.
std::vector<std::string> findings();

// The text of findings() calls these bytes `name` until they are freed.
void name_memory(const void* data, std::size_t bytes, std::string name);
// The text of findings() calls the stream `name`.
void name_stream(const void* stream, std::string name);

// Whether what is queued on `later` from now on runs after all that is queued on `earlier` by now.
bool waits_for(const void* later, const void* earlier);

// While one lives, every wait of this thread for the device is a finding.
class NoHostSync {
 public:
  NoHostSync();
  ~NoHostSync();
  NoHostSync(const NoHostSync&) = delete;
  NoHostSync& operator=(const NoHostSync&) = delete;
};

// Calls so far, of all threads.
struct Counters {
  std::uint64_t launches = 0;     // of kernels compiled by nvcc
  std::uint64_t operators = 0;    // of ATen, each of which is one kernel or more on a GPU
  std::uint64_t allocations = 0;  // cudaMalloc and cudaHostAlloc, not the caching allocator's
  std::uint64_t host_syncs = 0;   // waits of the host
  std::uint64_t to_device = 0, to_host = 0, on_device = 0;  // copies
  std::uint64_t event_waits = 0;                            // of one stream for another
  std::uint64_t collectives = 0;  // of NCCL, a group is as many as it has calls
};
Counters counters();
Counters operator-(const Counters& after, const Counters& before);

}  // namespace thinwire::fake_gpu
