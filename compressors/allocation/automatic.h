// The policy `auto`: for the model as a whole, the setting with the least error whose averaging
// hides behind the backward pass.
#pragma once

#include <string>
#include <vector>

#include "thinwire/common/spec.h"

namespace thinwire {

// The settings that `auto(max_error=SPEC)` may choose from, as specs, in order of growing error and
// fewer bytes: "none", "cast(bf16)", "quantize(bits=8)", ... up to SPEC, which is cast(bf16) or
// quantize(bits=B), 2 <= B <= 8, by default quantize(bits=4), and, with a quantiser's error in
// fewer bytes for more of the processor's time, ecsq(as=SPEC). Throws InvalidArgument with the
// value and what would be right.
std::vector<std::string> automatic_ladder(const Spec& spec);

}  // namespace thinwire
