// Values of which few are different, as names of their levels under the entropy coder.
//
// Values come in parts, of a layer each, that have levels of their own and share one table.
// Payload, little-endian:
//
//   u16 number of parts · for each part: u8 number of levels, 1 to 16 · the levels, float32 without
//   a sign, ascending · u32 number of values, not for the last part
//   for each level of the part that has most a weight of its positive and one of its negative
//   values (entropy/symbol_table.h) · unless only one symbol has a weight: stream of a symbol a
//   value, 2 · level, 1 more for a negative one (entropy/rans.h)
//
// What no value is written for has no payload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thinwire {

// Rounds magnitudes so that sign and magnitude take about two bits together. Magnitudes m of kept
// entries begin at a threshold t and thin out like exponentials, whose best quantiser under an
// entropy coder is uniform: level ⌊(m − t) / s⌋ of at most 14, each at the mean of what it holds,
// with s 1.5 times the mean of m − t. Positive and negative values share the levels. Zeros
// stay, what is not finite becomes NaN, and neither takes part in the rest. Sums run in order, so
// that the result is the same everywhere.
void round_to_levels(std::span<float> values);

// Most bytes that encode_levels() writes for so many values in so many parts.
std::size_t max_levels_bytes(std::size_t count, std::size_t parts = 1);

// Writes `values` without loss, to `out` of max_levels_bytes(); returns the bytes written, 0 where
// there are no values, or more than 16 different magnitudes in a part, or more than 65535 parts.
// `ends`: the number of values up to the end of each part, ascending, the last one that of all
// values; none where all are one part.
std::size_t encode_levels(std::span<const float> values, std::span<const std::uint32_t> ends,
                          std::span<std::byte> out);

// Reads values.size() of them, more than none, from the whole of `in`. Throws FrameError for
// anything that encode_levels() cannot have written.
void decode_levels(std::span<const std::byte> in, std::span<float> values);

}  // namespace thinwire
