// How long something took.
#pragma once

#include <chrono>

namespace thinwire {

using Clock = std::chrono::steady_clock;

// Seconds from `begin` to now. Thread-safe.
inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace thinwire
