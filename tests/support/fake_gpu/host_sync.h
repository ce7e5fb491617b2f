// Waits of the host for the device: counted, and found where they must not be.
#pragma once

#include <atomic>
#include <cstdint>

namespace thinwire::fake_gpu {

// While one lives, waits of this thread are the emulation's: a GPU would not have them, so they
// count for nothing and order nothing.
class EmulationWait {
 public:
  EmulationWait();
  ~EmulationWait();
  EmulationWait(const EmulationWait&) = delete;
  EmulationWait& operator=(const EmulationWait&) = delete;
};
bool emulation_waits();

// Called before each wait, with CUDA's name for it.
void host_waits(const char* call);

struct AtomicCounters {
  std::atomic<std::uint64_t> launches, operators, allocations, host_syncs, to_device, to_host,
      on_device, event_waits, collectives;
};
AtomicCounters& counting();

}  // namespace thinwire::fake_gpu
