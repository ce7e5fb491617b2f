// cast: every element in a narrower floating-point format.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `cast(bf16)` or `cast(format=fp16)`, also fp8_e4m3 and fp8_e5m2.
//
// Rounds to nearest even. NaN stays NaN; what overflows float16 becomes infinite, as a processor's
// conversion does, so a gradient that float16 cannot hold is seen as non-finite after averaging.
// A tensor that already has the format travels as it is. float64 is rounded to float32 first.
//
// The 8-bit formats (kernels/fp8.h) have one byte of scale, a power of two, for every 128 elements,
// so nothing overflows them; NaN stays NaN, infinity becomes NaN in e4m3. 2^k survives exactly
// where it lies within 2^-17 (e4m3) or 2^-31 (e5m2) of the block's largest magnitude and that is at
// least 2^-100. They need error feedback.
CodecPtr make_cast(const Spec& spec);

}  // namespace thinwire
