// Executes kernels from PTX text on the host, as a GPU would and stricter.
//
// Every thread runs until its next barrier or vote before another one does, in an order that a seed
// draws. What the threads of a warp vote orders no accesses to memory.
// Faults that a GPU does not tell throw std::runtime_error naming kernel, block, thread and line:
// access out of bounds or unaligned, a register or byte that was never written, a race, a barrier
// or vote that not all threads reach, more steps than kMostSteps.
//
// What this leaves unproven: ptxas and the machine code, the hardware, its speed.
#pragma once

#include <cstdint>
#include <span>

#include "thinwire/tests/support/ptx/memory.h"
#include "thinwire/tests/support/ptx/program.h"

namespace thinwire::testing::ptx {

struct Launch {
  std::uint32_t blocks = 1;
  std::uint32_t threads = 1;  // of a block
  std::span<const std::byte> parameters = {};
  std::uint64_t seed = 0;  // of the order of threads
};

// Instructions that one launch may execute: far more than any test needs, so that a loop without
// end is an error.
inline constexpr std::uint64_t kMostSteps = 2'000'000'000;

struct Statistics {
  std::uint64_t instructions = 0, barriers = 0;
};

Statistics run(const Kernel& kernel, const Launch& launch, GlobalMemory& memory);

}  // namespace thinwire::testing::ptx
