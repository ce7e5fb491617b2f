// How long something took.
#pragma once

#include <chrono>

namespace thinwire {

using Clock = std::chrono::steady_clock;

// Seconds from `begin` to now. Thread-safe.
inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Seconds of the clock, from a beginning that is not told. Thread-safe.
inline double clock_seconds() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace thinwire
