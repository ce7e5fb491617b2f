// quantize: bucketed uniform quantisation to 1–8 bits.
//
// Alistarh et al., "QSGD", NeurIPS 2017, for the norms linf and l2; the min-max form is the common
// one of quantised all-reduces. Levels, rounding and layout: kernels/quantize_math.h and
// kernels/quantize_ref.h.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `quantize(bits=4, bucket=1024, norm=minmax, rounding=nearest)`
//
//   bits      1 … 8 bits an element
//   bucket    elements that share a header of 8 (minmax) or 4 bytes (linf, l2), 1 … 2^24
//   norm      minmax | linf | l2
//   rounding  nearest (biased) | stochastic (unbiased; Philox of the key and the element's index)
//
// Bytes: numel · bits / 8, rounded up in every bucket, and the headers.
// Error of an element: at most unit / 2 (nearest), less than unit (stochastic), besides rounding
// to `dtype` and to float32 (a few units in the last place of the bucket's largest magnitude).
// A bucket of one repeated value decodes to exactly that value with every norm. A bucket with NaN
// or infinity decodes to NaN.
// float32, float16, bfloat16; float64 is rounded to float32 first.
// Also tensors in GPU memory (docs/gpu.md; never run on a GPU so far), aligned to their elements;
// InvalidArgument says what is missing where the CUDA module or the driver is.
CodecPtr make_quantize(const Spec& spec);

}  // namespace thinwire
