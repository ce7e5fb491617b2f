// Which row codec each of the four legs of an exchange uses.
#pragma once

#include <string>

#include "thinwire/moe/rows/leg_bytes.h"

namespace thinwire::moe {

// Spec of the row codec of every leg; "" sends rows as they are. Gradients pass through lossy legs
// unchanged (straight-through); unbiased codecs (rounding=stochastic) suit the backward legs.
struct LegSpecs {
  std::string dispatch = {};
  std::string combine = {};
  std::string combine_backward = {};
  std::string dispatch_backward = {};

  const std::string& of(Leg leg) const;
};

// "SPEC" for all legs, "FORWARD; BACKWARD", or the four legs in the order above, for example
// `spectral(bits=3); quantize(bits=8, rounding=stochastic)`. A single spectral(bits=B) or
// ecsq(bits=B) is for the forward legs; gradients, which must not lose what is small in every row,
// go back by quantize(bits=max(3, ⌈B⌉), rounding=stochastic) or ecsq(bits=max(2.5, B),
// rounding=stochastic). Throws InvalidArgument for another number of
// specs; the specs themselves are checked by RowCodec.
LegSpecs parse_rows(const std::string& text);

}  // namespace thinwire::moe
