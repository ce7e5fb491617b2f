// Cooperative kernels: code that all threads of one block run together, on a GPU or on host
// threads.
//
// The body of a kernel is a template over a context, which is one thread's view of its block:
//
//   std::uint32_t thread() const   0 … size() − 1
//   std::uint32_t size() const     threads of the block, 1 … kMaxBlockThreads
//   void sync()                    no thread goes on before all have come here; what they wrote
//                                  before is seen after. Every thread must make the same calls.
//
// x_cuda.cu runs the body with CUDA's threads, the tests run it on host threads that meet at a
// barrier, where ThreadSanitizer sees a missing sync() and every bit can be compared with the
// scalar reference. That is how these kernels are tested: they have never run on a GPU.
// Shared memory is a plain struct that the body is given; see Note [Shared memory of a block].
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/half_math.h"

namespace thinwire::kernels {

// Threads of one block: with 256, eight blocks fill a multiprocessor of any current GPU, and their
// different phases hide each other's waits.
inline constexpr std::uint32_t kMaxBlockThreads = 256;

// Of `count` items (at least one) in order of where they begin, the index of the last one that
// begins at `place` or before; the first item where none does.
template <typename Item, typename Place>
THINWIRE_HOST_DEVICE std::uint32_t last_begun(const Item* items, std::uint32_t count,
                                              Place Item::*begin, Place place) {
  std::uint32_t low = 0, high = count;
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    (items[middle].*begin <= place ? low : high) = middle;
  }
  return low;
}

// Element `i` of a tensor whose memory is aligned to its elements; the values and roundings of
// ref::load(), ref::store() and ref::accumulate().
template <DType kType>
THINWIRE_HOST_DEVICE float load_element(const void* data, std::uint64_t i) {
  if constexpr (kType == DType::kFloat32) return static_cast<const float*>(data)[i];
  if constexpr (kType == DType::kFloat64) {
    return static_cast<float>(static_cast<const double*>(data)[i]);
  }
  if constexpr (kType == DType::kFloat16) {
    return float_from_half(static_cast<const std::uint16_t*>(data)[i]);
  }
  if constexpr (kType == DType::kBFloat16) {
    return float_from_bfloat(static_cast<const std::uint16_t*>(data)[i]);
  }
}

template <DType kType>
THINWIRE_HOST_DEVICE void store_element(void* data, std::uint64_t i, float value) {
  if constexpr (kType == DType::kFloat32) static_cast<float*>(data)[i] = value;
  if constexpr (kType == DType::kFloat64) static_cast<double*>(data)[i] = value;
  if constexpr (kType == DType::kFloat16) {
    static_cast<std::uint16_t*>(data)[i] = half_from_float(value);
  }
  if constexpr (kType == DType::kBFloat16) {
    static_cast<std::uint16_t*>(data)[i] = bfloat_from_float(value);
  }
}

template <DType kType>
THINWIRE_HOST_DEVICE void add_to_element(void* data, std::uint64_t i, float value) {
  if constexpr (kType == DType::kFloat64) {
    static_cast<double*>(data)[i] += static_cast<double>(value);
  } else {
    store_element<kType>(data, i, load_element<kType>(data, i) + value);
  }
}

// Words of a payload, which may lie at any address. An aligned word is one access.
THINWIRE_HOST_DEVICE std::uint32_t load_word(const std::byte* at) {
  std::uint32_t word;
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof word == 0) {
    std::memcpy(&word, __builtin_assume_aligned(at, sizeof word), sizeof word);
  } else {
    std::memcpy(&word, at, sizeof word);
  }
  return word;
}
THINWIRE_HOST_DEVICE void store_word(std::byte* at, std::uint32_t word) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof word == 0) {
    std::memcpy(__builtin_assume_aligned(at, sizeof word), &word, sizeof word);
  } else {
    std::memcpy(at, &word, sizeof word);
  }
}

// Calls run(std::integral_constant<DType, dtype>()).
template <typename Run>
decltype(auto) with_dtype(DType dtype, Run&& run) {
  switch (dtype) {
    case DType::kFloat16:
      return run(std::integral_constant<DType, DType::kFloat16>());
    case DType::kBFloat16:
      return run(std::integral_constant<DType, DType::kBFloat16>());
    case DType::kFloat64:
      return run(std::integral_constant<DType, DType::kFloat64>());
    case DType::kFloat32:
      break;
  }
  return run(std::integral_constant<DType, DType::kFloat32>());
}

}  // namespace thinwire::kernels
