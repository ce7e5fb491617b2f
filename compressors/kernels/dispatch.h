// The choice among the functions that Highway compiled, one for each SIMD target: thinwire's own.
// HWY_DYNAMIC_DISPATCH reads a choice that all users of libhwy in the process share, which a
// library must not change for the others (nor have changed by them).
//
// For files that include <hwy/highway.h>. simd.h makes the choice.
#pragma once

#include <hwy/targets.h>

namespace thinwire::kernels {

// The targets that may be used. Initialised at the first call: all that the processor has.
// Thread-safe.
hwy::ChosenTarget& chosen_target();

}  // namespace thinwire::kernels

// Of a FUNCTION that HWY_EXPORT has listed: THINWIRE_DISPATCH(Function)(arguments). With a single
// target there is no table to choose from.
#if HWY_IDE || ((HWY_TARGETS & (HWY_TARGETS - 1)) == 0)
#define THINWIRE_DISPATCH(FUNCTION) HWY_STATIC_DISPATCH(FUNCTION)
#else
#define THINWIRE_DISPATCH(FUNCTION) \
  (*(HWY_DISPATCH_TABLE(FUNCTION)[::thinwire::kernels::chosen_target().GetIndex()]))
#endif
