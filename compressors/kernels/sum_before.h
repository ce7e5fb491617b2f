// What the threads of a block before each one have, for bodies of kernels (block.h).
#pragma once

#include "thinwire/compressors/kernels/block.h"

namespace thinwire::kernels {

struct SumShared {
  std::uint32_t sums[kMaxBlockThreads];
};

// How many those before this thread have, without its own. May be called again and again.
template <typename Context>
THINWIRE_HOST_DEVICE std::uint32_t sum_before(Context& block, SumShared& shared,
                                              std::uint32_t mine) {
  const std::uint32_t thread = block.thread();
  std::uint32_t sum = mine;
  shared.sums[thread] = sum;
  block.sync();
  for (std::uint32_t distance = 1; distance < block.size(); distance *= 2) {
    const std::uint32_t more = thread >= distance ? shared.sums[thread - distance] : 0;
    block.sync();
    sum += more;
    shared.sums[thread] = sum;
    block.sync();
  }
  return sum - mine;
}

}  // namespace thinwire::kernels
