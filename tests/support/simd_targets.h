// Runs the same check on every SIMD target of this build that the processor has.
#pragma once

#include <string>

#include "thinwire/compressors/kernels/simd.h"

namespace thinwire::testing {

// Uses one target while it lives.
class ScopedTarget {
 public:
  explicit ScopedTarget(const std::string& name) { kernels::set_simd_target(name); }
  ~ScopedTarget() { kernels::set_simd_target(""); }
  ScopedTarget(const ScopedTarget&) = delete;
  ScopedTarget& operator=(const ScopedTarget&) = delete;
};

// Calls body(name of the target).
template <typename Body>
void for_each_simd_target(const Body& body) {
  for (const std::string& target : kernels::simd_targets()) {
    const ScopedTarget scoped(target);
    body(target);
  }
}

}  // namespace thinwire::testing
