// Arithmetic that the CPU and the CUDA kernels share, so that both give the same bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define THINWIRE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define THINWIRE_HOST_DEVICE inline
#endif

namespace thinwire::kernels {

THINWIRE_HOST_DEVICE std::uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(std::uint32_t, value);
#endif
}

THINWIRE_HOST_DEVICE float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

THINWIRE_HOST_DEVICE std::uint64_t bits_of(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint64_t>(__double_as_longlong(value));
#else
  return __builtin_bit_cast(std::uint64_t, value);
#endif
}

THINWIRE_HOST_DEVICE double double_of(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return __builtin_bit_cast(double, bits);
#endif
}

THINWIRE_HOST_DEVICE std::uint32_t bits_set(std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint32_t>(__popc(static_cast<int>(word)));
#else
  return static_cast<std::uint32_t>(__builtin_popcount(word));
#endif
}

// Of a word that is not 0, the number of zeros before its highest bit.
THINWIRE_HOST_DEVICE int leading_zeros(std::uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __clzll(static_cast<long long>(word));
#else
  return __builtin_clzll(word);
#endif
}

inline constexpr std::uint32_t kFloatInfinityBits = 0x7F800000u;
// The one NaN that kernels write, so that payloads do not depend on which NaN came in.
inline constexpr std::uint32_t kFloatNanBits = 0x7FC00000u;

// Finite: neither NaN nor infinite. std::isfinite may be folded away by a caller's -ffast-math.
THINWIRE_HOST_DEVICE bool is_finite(float value) {
  return (bits_of(value) & 0x7FFFFFFFu) < kFloatInfinityBits;
}

}  // namespace thinwire::kernels
