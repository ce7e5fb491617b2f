// What `auto` goes by, from what the clock of a training has seen.
#pragma once

#include "thinwire/torch_ext/adaptive/automatic_plan.h"
#include "thinwire/torch_ext/ddp/step_profile.h"

namespace thinwire {

// The communication thread takes one bucket after another: a bucket's work is what is left of the
// time from when it was taken to its mean, where the one before was finished later than that.
MeasuredSteps measured_steps(const StepProfile& profile);

}  // namespace thinwire
