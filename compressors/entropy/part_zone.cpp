#include "thinwire/compressors/entropy/part_zone.h"

#include <algorithm>
#include <cmath>

#include "thinwire/compressors/entropy/dead_zone_math.h"

namespace thinwire::entropy {

bool mostly_small(std::span<const float> values, float limit) {
  if (values.size() < kFewestForPairs) return false;
  std::size_t large = 0;
  const std::size_t stride = values.size() / kZoneSample;
  for (std::size_t i = 0; i < kZoneSample; ++i) {
    large += std::abs(values[i * stride]) >= limit ? 1 : 0;
  }
  return large <= kMostBeyondPairs;
}

float part_rounding(std::span<const float> values, float step, float rounding) {
  const std::size_t sampled = std::min<std::size_t>(values.size(), kZoneSample);
  const std::size_t stride = values.size() / sampled;
  const float one = (1 - rounding) * step, two = (2 - rounding) * step;
  std::uint64_t below_one = 0, below_two = 0;
  for (std::size_t i = 0; i < sampled; ++i) {
    const float magnitude = std::abs(values[i * stride]);
    below_one += magnitude < one ? 1 : 0;
    below_two += magnitude < two ? 1 : 0;
  }
  return rounding_of_part(below_one, below_two);
}

}  // namespace thinwire::entropy
