// One sign an element, and for every bucket the mean of its negative elements and the mean of the
// others: 32 bits become 1 + 64 / bucket. The means are the values of least squared error, so the
// codec always contracts. Payload: sign_planes.h.
//
// Seide et al., "1-bit stochastic gradient descent", Interspeech 2014 (there a pair of means for
// every column of a matrix; a bucket keeps the pair near its elements and needs no shape).
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `onebit(bucket=1024)`; the bucket is a multiple of 64.
CodecPtr make_onebit(const Spec& spec);

}  // namespace thinwire
