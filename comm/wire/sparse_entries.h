// Entries of a sparse vector as bytes, without loss and without knowing which codec chose them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

// Entries of several layers, one after the other.
struct LayeredEntries : SparseEntries {
  // Numbers of entries up to the end of each layer that has some.
  std::vector<std::uint32_t> ends;

  void clear();
  // What was added since the last end is of one layer.
  void end_layer();
};

// Payload, little-endian:
//
//   u32 number of entries · u8 form of the values · [indices, index_coder.h] · values
//
//   form 0  float32          1  float16          2  bfloat16
//        3  one magnitude (float32) and a sign bit each
//        4  all elements as float32, without indices; the number is that of the elements
//        5  levels (codecs/value_levels.h)
//
// Of the forms that give back every bit the smallest is taken: entries of topk(values=fp16) go as
// float16, coded ones as levels, those of ternary as signs, and form 4 where so many elements are
// set that their indices would cost more than the zeros.
std::size_t max_entries_bytes(std::uint64_t numel);
// What `count` entries of a vector of `numel` elements, of so many layers, take at most.
std::size_t max_entries_bytes(std::uint64_t numel, std::size_t count, std::size_t layers = 1);

// Writes the entries of a vector of `numel` elements (at most 2^32 − 1) to `out`, which holds
// max_entries_bytes(numel, entries.size(), entries.ends.size()); returns the bytes written. Layers
// have levels of their own.
std::size_t encode_entries(const LayeredEntries& entries, std::uint64_t numel,
                           std::span<std::byte> out);

// Reads the whole of `in` into `entries`. Throws FrameError for anything that cannot be a vector of
// `numel` elements.
void decode_entries(std::span<const std::byte> in, std::uint64_t numel, SparseEntries& entries);

}  // namespace thinwire::comm
