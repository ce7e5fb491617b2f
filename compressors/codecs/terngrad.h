// Every element becomes −s, 0 or s, where s is the largest magnitude of its bucket and the chance
// of ±s is |x| / s: unbiased, 32 bits become 2 + 32 / bucket. With clip = c > 0 magnitudes above c
// times the bucket's root mean square are cut to that, which lowers the variance and gives up
// unbiasedness. Payload: sign_planes.h.
//
// The noise is s·‖x‖₁ − ‖x‖², more than x's own energy unless the magnitudes are much alike, so the
// codec does not contract and error feedback is off by default: residuals of noise would grow.
//
// Wen et al., "TernGrad", NeurIPS 2017 (there one scale a layer; clip=2.5).
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `terngrad(bucket=1024, clip=0)`; the bucket is a multiple of 64, clip=0 does not clip.
CodecPtr make_terngrad(const Spec& spec);

}  // namespace thinwire
