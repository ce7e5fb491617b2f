// Sorted indices as bits whose number follows from n and k alone, and which many threads write and
// read at once: form 253 of index_coder.h. The words, all of 32 bits:
//
//   directory  for every 512 bits of the upper part, how many of the bits before them are set
//   low        the low b bits of every index, one after another
//   upper      of index i, the j-th: bit (i >> b) + j is set; no other is
//
// k · (b + 2) bits and about 1/16 of a bit an index for the directory, where b = ⌊log2(n / k)⌋.
//
// Elias, "Efficient storage and retrieval by content and address of static files", 1974; Fano,
// 1971.
#pragma once

#include "thinwire/compressors/kernels/host_device.h"

namespace thinwire::kernels {

inline constexpr std::uint32_t kEliasFanoForm = 253;
// Words of the upper part to one of the directory.
inline constexpr std::uint32_t kDirectoryRun = 16;

struct EliasFano {
  std::uint32_t low_bits = 0;  // of an index
  std::uint32_t directory_words = 0, low_words = 0, upper_words = 0;

  // Of k indices below n; n at most 2^32, k at least 1.
  static constexpr EliasFano of(std::uint64_t n, std::uint64_t k) {
    EliasFano made;
    while ((n >> (made.low_bits + 1)) >= k) ++made.low_bits;
    const std::uint64_t upper = k + ((n - 1) >> made.low_bits) + 1;
    made.upper_words = static_cast<std::uint32_t>((upper + 31) / 32);
    made.low_words = static_cast<std::uint32_t>((k * made.low_bits + 31) / 32);
    made.directory_words = (made.upper_words + kDirectoryRun - 1) / kDirectoryRun;
    return made;
  }
  THINWIRE_HOST_DEVICE constexpr std::uint32_t words() const {
    return directory_words + low_words + upper_words;
  }
};

}  // namespace thinwire::kernels
