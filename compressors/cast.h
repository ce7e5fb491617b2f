// cast: every element in a narrower floating-point format.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codec.h"

namespace thinwire {

// `cast(bf16)` or `cast(format=fp16)`.
//
// Rounds to nearest even. NaN stays NaN; what overflows float16 becomes infinite, as a processor's
// conversion does, so a gradient that float16 cannot hold is seen as non-finite after averaging.
// A tensor that already has the format travels as it is. float64 is rounded to float32 first.
CodecPtr make_cast(const Spec& spec);

}  // namespace thinwire
