#include "thinwire/compressors/peft/scale_rule.h"

#include <charconv>
#include <cmath>
#include <numbers>

#include "thinwire/common/error.h"

namespace thinwire::peft {

ScaleRule ScaleRule::parse(const std::string& text) {
  if (text == "mean") return {};
  constexpr std::string_view kPrefix = "std:";
  double alpha = 0;
  if (text.starts_with(kPrefix)) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + kPrefix.size(), end, alpha);
    if (error == std::errc() && stop == end && std::isfinite(alpha) && alpha > 0) return {alpha};
  }
  throw InvalidArgument(
      concat("scale must be 'mean' or 'std:ALPHA' with a positive ALPHA, got '", text, "'"));
}

std::string ScaleRule::str() const {
  return alpha ? concat("std:", *alpha) : "mean";
}

double ScaleRule::scale(double mean_kept, double standard_deviation) const {
  return alpha ? *alpha * standard_deviation : mean_kept;
}

std::string ScaleRule::repeat_warning(double mean_kept, double standard_deviation) const {
  if (!alpha || mean_kept == 0 || standard_deviation == 0) return "";
  return peft::repeat_warning(*alpha, mean_kept / standard_deviation);
}

double gaussian_mean_kept(double density) {
  check(density > 0 && density <= 1, "density must be in (0, 1], got ", density);
  // P(|x| > z) = erfc(z / sqrt(2)) falls with z; 60 halvings of [0, 40] settle every bit.
  double low = 0, high = 40;
  for (int i = 0; i < 60; ++i) {
    const double z = (low + high) / 2;
    (std::erfc(z / std::numbers::sqrt2) > density ? low : high) = z;
  }
  const double pdf = std::exp(-low * low / 2) / std::sqrt(2 * std::numbers::pi);
  return 2 * pdf / density;
}

std::string repeat_warning(double alpha, double m) {
  if (alpha >= 2 * m)
    return concat(
        "alpha = ", alpha, " is at least twice mean|kept|/std = ", m,
        ": each compression makes the error larger than the delta, so a repeated exchange "
        "diverges; use the scale 'mean' there");
  constexpr double kUnstable = 4;
  if (alpha >= kUnstable)
    return concat("alpha = ", alpha, " is at least ", kUnstable,
                  ": one compression contracts, but under error feedback the residual never "
                  "settles and a repeated exchange diverges; use the scale 'mean' there");
  return "";
}

}  // namespace thinwire::peft
