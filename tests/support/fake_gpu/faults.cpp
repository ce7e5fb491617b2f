// Whoever touches device memory where nobody may is told what it was, before the process stops.
#include <csignal>
#include <cstring>
#include <string>

#include <unistd.h>

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/stream.h"

namespace thinwire::fake_gpu {
namespace {

// What was there before, for addresses that are none of ours.
struct sigaction previous;

void on_fault(int number, siginfo_t* info, void*) {
  const void* const touched = info->si_addr;
  const void* const behind = address_of_shadow(touched);
  std::string text;
  if (is_device(touched)) {
    text = concat("fake GPU: ", current_task() == nullptr ? "the host" : current_task()->what,
                  " follows an address of device memory: ", describe_memory(touched), "\n");
  } else if (behind != nullptr && current_task() != nullptr) {
    text =
        concat("fake GPU: '", current_task()->what, "' on ",
               describe_stream(current_task()->stream), " touches ", describe_memory(behind), "\n");
  }
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
  // The instruction faults again, and this time as it would have without us.
  sigaction(number, &previous, nullptr);
}

[[gnu::constructor]] void watch_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &previous);
}

}  // namespace
}  // namespace thinwire::fake_gpu
