// Rows of 8-bit floats with a scale for every block of kFp8Block elements (the last may be short):
// one byte s, then the elements, each x / 2^(s − 127) in the format. Plain 8-bit floats would flush
// gradients of 1e-5 to zero (e4m3 ends at 2^-10); with a power of two as scale all values keep
// their relative precision and powers of two within the format's range survive exactly.
//
// The error of a block in the L2 norm hardly depends on its length (2.7 % for e4m3, 5.3 % for e5m2,
// from 32 to 4096 elements, of normal, Laplace and heavy-tailed values), only what lies 2^-18
// (e4m3) below the block's largest is lost. 128 costs 0.8 % more bytes and keeps blocks inside rows
// of a weight matrix, which differ in scale.
//
// fp8_ref.h is the scalar reference that every SIMD target equals bit for bit. No pointer to bytes
// needs alignment. Thread-safe, allocates nothing.
#pragma once

#include <cstddef>

#include "thinwire/compressors/kernels/fp8_math.h"

namespace thinwire::kernels {

inline constexpr std::size_t kFp8Block = 128;

constexpr std::size_t fp8_bytes(std::size_t elements) {
  return elements + (elements + kFp8Block - 1) / kFp8Block;
}

// `count` floats into fp8_bytes(count), and back. Not-finite elements leave the scale to the
// others.
void fp8_encode(Fp8 format, const float* x, std::size_t count, std::byte* out);
void fp8_decode(Fp8 format, const std::byte* in, std::size_t count, float* out);

// Whether every scale byte is one that fp8_encode() writes; fp8_decode() demands it.
bool fp8_valid(const std::byte* in, std::size_t count);

}  // namespace thinwire::kernels
