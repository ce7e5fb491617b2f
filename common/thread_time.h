// The processor time of a thread.
#pragma once

#include <ctime>

namespace thinwire {

// Seconds that the calling thread has computed; waiting for a processor that others use does not
// count.
inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace thinwire
