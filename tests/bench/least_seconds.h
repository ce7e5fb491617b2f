// How long a piece of code takes at best.
#pragma once

#include <algorithm>
#include <limits>

#include "thinwire/common/thread_time.h"

namespace thinwire {

// The least processor time of `turns` calls: what others on the machine do can only add to it.
template <typename Body>
double least_seconds(int turns, const Body& body) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < turns; ++i) {
    const double begun = thread_seconds();
    body();
    least = std::min(least, thread_seconds() - begun);
  }
  return least;
}

}  // namespace thinwire
