// Sorted, distinct indices as bits: the index part of topk's and ternary's payloads.
//
// One byte says how, then come the indices. encode_indices() takes the smallest form but 253, which
// is for encoders whose sizes must not depend on the indices: kernels of GPUs.
//
//   0 … 31  Golomb-Rice with that parameter b: per index the gap g to the index before it, less
//           one, as ⌊g / 2^b⌋ zero bits, a one bit and the b low bits of g
//   253     Elias-Fano (kernels/elias_fano.h): the byte, three zeros, then its words
//   254     bitmap, n bits
//   255     every index in bit_width(n − 1) bits
//
// Bits fill bytes from the lowest; the last byte is padded with zeros. k indices spread at random
// over n cost about k · (H(k/n) · n/k + 0.03) bits with Golomb-Rice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire {

// Most bytes that encode_indices() writes for k indices below n; it grows with k.
std::size_t max_index_bytes(std::uint64_t n, std::uint64_t k);

// Writes `indices` (ascending, distinct, below n <= 2^32) to `out`, which holds max_index_bytes();
// returns the bytes written. Thread-safe, allocates nothing.
std::size_t encode_indices(std::span<const std::uint32_t> indices, std::uint64_t n,
                           std::span<std::byte> out);

// Form 253, which is always elias_fano_bytes(n, k) long. At least one index. Allocates nothing.
std::size_t elias_fano_bytes(std::uint64_t n, std::uint64_t k);
void encode_elias_fano(std::span<const std::uint32_t> indices, std::uint64_t n,
                       std::span<std::byte> out);

// Reads indices.size() indices from the front of `in` and returns the bytes that they took. Throws
// FrameError unless they are ascending, distinct and below n, and the padding is zero.
std::size_t decode_indices(std::span<const std::byte> in, std::uint64_t n,
                           std::span<std::uint32_t> indices);

// Fewest bytes that k indices can take, whatever their values: what a decoder may demand before it
// makes room for k of them.
std::size_t min_index_bytes(std::uint64_t k);

}  // namespace thinwire
