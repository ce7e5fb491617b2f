// How a part is quantised, from a sample of its values (dead_zone_math.h).
#pragma once

#include <span>

namespace thinwire::entropy {

// Whether so few of the values have magnitudes of `limit` and more that codes go in pairs.
bool mostly_small(std::span<const float> values, float limit);

// The rounding of a part, not empty, where `rounding` was asked for.
float part_rounding(std::span<const float> values, float step, float rounding);

}  // namespace thinwire::entropy
