// Noise that makes rounding right on average.
#pragma once

#include <cstdint>
#include <span>

#include "thinwire/common/philox.h"

namespace thinwire::kernels {

// out[i] = values[i] + (h − 32767.5) · unit, where h are the 16-bit halves of the stream's words
// from block `first` on, eight of a block, the low half of a word first. `out` has the size of the
// values. float32, rounded after every operation. Thread-safe; allocates nothing.
void dither(std::span<const float> values, float unit, const PhiloxStream& stream,
            std::uint64_t first, float* out);

}  // namespace thinwire::kernels
