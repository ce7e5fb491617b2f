// Values of which few are different, as names of their levels under the entropy coder.
//
// Payload, little-endian:
//
//   u8 number of levels, 1 to 32 · the levels, float32, ascending as unsigned numbers of their bits
//   only with more than one level: a weight of each (entropy/symbol_table.h), none of them 0 ·
//   stream of one symbol a value (entropy/rans.h)
//
// What no value is written for has no payload.
#pragma once

#include <cstddef>
#include <span>

namespace thinwire {

// Rounds magnitudes so that sign and magnitude take about two bits together. Magnitudes m of kept
// entries begin at a threshold t and thin out like exponentials, whose best quantiser under an
// entropy coder is uniform: level ⌊(m − t) / s⌋ of at most 15, each at the mean of what it holds,
// with s 1.5 times the mean of m − t. Positive and negative values share the levels. Zeros
// stay, what is not finite becomes NaN, and neither takes part in the rest. Sums run in order, so
// that the result is the same everywhere.
void round_to_levels(std::span<float> values);

// Most bytes that encode_levels() writes for so many values.
std::size_t max_levels_bytes(std::size_t count);

// Writes `values` without loss, to `out` of max_levels_bytes(); returns the bytes written, 0 where
// there are no values or more than 32 different ones.
std::size_t encode_levels(std::span<const float> values, std::span<std::byte> out);

// Reads values.size() of them, more than none, from the whole of `in`. Throws FrameError for
// anything that encode_levels() cannot have written.
void decode_levels(std::span<const std::byte> in, std::span<float> values);

}  // namespace thinwire
