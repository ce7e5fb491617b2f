#include <algorithm>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::entropy {
namespace {

float level_among(std::uint32_t magnitude, float step,
                  const std::array<std::uint8_t, kCentroids>& centroids) {
  return level_of(magnitude, centroids[std::min<std::size_t>(magnitude, kCentroids) - 1], step);
}

}  // namespace

// Derives beyond_ from everything else.
void StepCodes::set_levels() {
  if (beyond_.size() < excess_count_ + 16) beyond_.resize(excess_count_ + 16);
  for (const Part& part : parts_) {
    const auto bound = static_cast<std::uint32_t>(part.bound());
    for (std::size_t i = part.first_excess; i < part.first_excess + part.excess; ++i) {
      beyond_[i] = level_among(excess_[i] + bound, step_, part.centroids);
    }
  }
}

void StepCodes::apply(std::size_t index, Apply apply, std::span<float> values) const {
  const Part& part = parts_[index];
  THINWIRE_ASSERT(values.size() == part.numel);
  if (part.kind == PartKind::kNotFinite) {
    std::ranges::fill(values, std::numeric_limits<float>::quiet_NaN());
  } else if (part.kind != PartKind::kZero) {
    Levels levels{.bound = part.bound()};
    for (std::uint32_t m = 1; m <= 15; ++m) {
      const float level = level_among(m, step_, part.centroids);
      levels.of_symbol[2 * m - 1] = level;
      levels.of_symbol[2 * m] = -level;
    }
    apply_levels(symbols_.data() + part.first, beyond_.data() + part.first_excess, levels, apply,
                 values);
  } else if (apply == Apply::kAssign) {
    std::ranges::fill(values, 0.0f);
  }
}

}  // namespace thinwire::entropy
