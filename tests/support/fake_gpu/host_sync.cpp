#include "thinwire/tests/support/fake_gpu/host_sync.h"

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/detector.h"
#include "thinwire/tests/support/fake_gpu/fake_gpu.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace thinwire::fake_gpu {
namespace {

thread_local int forbidden = 0;
thread_local int emulating = 0;

}  // namespace

NoHostSync::NoHostSync() {
  ++forbidden;
}
NoHostSync::~NoHostSync() {
  --forbidden;
}
EmulationWait::EmulationWait() {
  ++emulating;
}
EmulationWait::~EmulationWait() {
  --emulating;
}
bool emulation_waits() {
  return emulating > 0;
}

void host_waits(const char* call) {
  if (emulation_waits()) return;
  ++counting().host_syncs;
  if (forbidden > 0) add_finding(concat("host sync: ", call, " where the host must not wait"));
}

AtomicCounters& counting() {
  static AtomicCounters counters{};
  return counters;
}

Counters counters() {
  const AtomicCounters& now = counting();
  return {now.launches, now.operators, now.allocations, now.host_syncs, now.to_device,
          now.to_host,  now.on_device, now.event_waits, now.collectives};
}

Counters operator-(const Counters& after, const Counters& before) {
  return {after.launches - before.launches,       after.operators - before.operators,
          after.allocations - before.allocations, after.host_syncs - before.host_syncs,
          after.to_device - before.to_device,     after.to_host - before.to_host,
          after.on_device - before.on_device,     after.event_waits - before.event_waits,
          after.collectives - before.collectives};
}

std::vector<std::string> findings() {
  run_everything();
  return take_findings();
}

}  // namespace thinwire::fake_gpu
