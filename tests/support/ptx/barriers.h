// Whether a test of a kernel would notice that one of its barriers is missing.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::testing::ptx {

// What `of_seed(seed)` says is wrong, or throws, under the first of three schedules of threads that
// shows something; else empty.
template <typename OfSeed>
std::string finding_of_seeds(const OfSeed& of_seed) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    try {
      if (std::string found = of_seed(seed); !found.empty()) return found;
    } catch (const std::runtime_error& error) {
      return error.what();
    }
  }
  return {};
}

// Takes out every barrier of the kernels of these names, one at a time, and expects that
// `finding(kernels)` then says something. Returns how many there are.
template <typename Finding>
int expect_barriers_are_needed(const std::vector<Kernel>& kernels,
                               const std::vector<std::string>& names, const Finding& finding) {
  int barriers = 0;
  for (const std::string& name : names) {
    const Kernel& whole = kernel_of(kernels, name);
    for (std::size_t i = 0; i < whole.code.size(); ++i) {
      if (whole.code[i].op != Op::kBar) continue;
      ++barriers;
      EXPECT_FALSE(finding(without_barrier(kernels, whole.name, i)).empty())
          << name << ": the barrier of PTX line " << whole.code[i].line;
    }
  }
  return barriers;
}

}  // namespace thinwire::testing::ptx
