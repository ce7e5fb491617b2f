// identity: the tensor's own bytes. What layers that are not compressed travel as.
#pragma once

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// `identity`, no parameters. Any dtype, host memory.
CodecPtr make_identity(const Spec& spec);

}  // namespace thinwire
