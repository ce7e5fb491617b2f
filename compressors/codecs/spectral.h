// Entropy-coded scalar quantisation in a learned basis: what ecsq does, of coefficients whose sizes
// differ so much that most of them are zero. scatter_reduce turns each matrix into a basis that
// follows the means which all ranks decode (spectral/matrix_basis.h), and codes elements of like
// predicted size together, see comm/average/reduce/spectral_reduce.h. Where a tensor is coded by
// itself, which has no past, it is ecsq's payload.
//
//   spectral(bits=1)                  bits an element on the wire, as of ecsq
//   spectral(step=0.001), spectral(error=0.1)
//   directions=16                     leading directions of either side of a matrix
//   every=10                          steps from one basis to the next; the first ones come sooner
//
// MoE rows have a codec of the same name with other parameters, moe/rows/spectral_rows.h: the place
// where a spec stands says which is meant.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `spectral(bits=F | step=F | error=F, directions=K, every=N)`; bits=1 without any of the three.
// Throws InvalidArgument for anything else.
CodecPtr make_spectral(const Spec& spec);

}  // namespace thinwire
