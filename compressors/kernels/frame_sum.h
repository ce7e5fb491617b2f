// The checksum of frames that are made and read in GPU memory: a sum that may be taken in any
// order, so that a whole GPU takes it, and that a loop on a CPU can take as well.
//
// A message is read as little-endian words of 32 bits, the last one filled up with zeros. Each is
// mixed with its place, so that words that change places, and runs of zeros, are noticed; the mix
// is one-to-one in the word, so that one damaged word always is.
#pragma once

#include <cstddef>

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

// The term of word `index`.
THINWIRE_HOST_DEVICE std::uint64_t frame_term(std::uint32_t word, std::uint64_t index) {
  std::uint64_t x = word ^ ((index + 1) * 0x9E3779B97F4A7C15u);
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  return x ^ (x >> 32);
}

// Words of a frame's header are counted from here, those of its payload from 0.
inline constexpr std::uint64_t kHeaderWords = std::uint64_t{1} << 62;

}  // namespace thinwire::kernels
