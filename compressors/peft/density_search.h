// Looking for the density of a ternary delta that meets a target.
#pragma once

#include <cstdint>
#include <functional>

#include "thinwire/compressors/peft/pack.h"

namespace thinwire::peft {

using ErrorAt = std::function<double(double density)>;
using BytesAt = std::function<double(double density)>;
using Select = std::function<TernaryDelta(double density)>;

// The delta of the smallest density whose relative error is at most `target`. `error_at` is never
// less than the error that a selection has; as a rule one selection is enough. Throws
// InvalidArgument where no density has so small an error.
TernaryDelta least_density_with_error(double target, const ErrorAt& error_at, const Select& select);

// Of the densities whose file has at most `target` bytes, the one of least error: the largest up to
// two thirds, or 1. `ideal_bytes_at` tells about how the bytes of the blocks grow with the density;
// what they are is measured, and a few selections find the density to a fraction of a per mille of
// the bytes. Throws InvalidArgument where no density fits.
TernaryDelta best_density_within_bytes(std::uint64_t target, const ErrorAt& error_at,
                                       const BytesAt& ideal_bytes_at, const Select& select,
                                       const std::function<std::uint64_t(TernaryDelta&)>& bytes_of);

}  // namespace thinwire::peft
