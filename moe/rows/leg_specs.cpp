#include "thinwire/moe/rows/leg_specs.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/moe/rows/entropy_rows.h"
#include "thinwire/moe/rows/spectral_rows.h"

namespace thinwire::moe {
namespace {

// Fewer stochastic bits drown gradients in their noise; entropy-coded ones are finer.
constexpr double kLeastGradientBits = 3, kLeastEntropyBits = 2.5;

// The codec of the backward legs where `spec` is given for all.
std::string backward_of(const std::string& text) {
  const Spec spec = Spec::parse(text);
  const auto entropy_coded = [](double bits) {
    return spec_of(
        EntropyRowOptions{.bits = std::max(kLeastEntropyBits, bits), .stochastic = true});
  };
  if (spec.name == "ecsq") return entropy_coded(parse_entropy_rows(spec).bits);
  if (spec.name != "spectral") return text;
  const SpectralOptions options = parse_spectral(spec);
  if (options.entropy) return entropy_coded(options.bits);
  const double bits = std::max(kLeastGradientBits, std::ceil(options.bits));
  return concat("quantize(bits=", bits, ", rounding=stochastic)");
}

}  // namespace

const std::string& LegSpecs::of(Leg leg) const {
  switch (leg) {
    case Leg::kDispatch:
      return dispatch;
    case Leg::kCombine:
      return combine;
    case Leg::kCombineBackward:
      return combine_backward;
    case Leg::kDispatchBackward:
      return dispatch_backward;
  }
  throw InternalError("unknown leg");
}

LegSpecs parse_rows(const std::string& text) {
  std::vector<std::string> specs;
  for (const Spec& spec : Spec::parse_list(text)) specs.push_back(spec.str());
  switch (specs.size()) {
    case 1: {
      const std::string backward = backward_of(specs[0]);
      return {specs[0], specs[0], backward, backward};
    }
    case 2:
      return {specs[0], specs[0], specs[1], specs[1]};
    case 4:
      return {specs[0], specs[1], specs[2], specs[3]};
    default:
      throw InvalidArgument(
          concat("row codecs '", text, "': one spec for all legs, two (forward; backward) or four ",
                 "(dispatch; combine; backward of combine; backward of dispatch) expected, got ",
                 specs.size()));
  }
}

}  // namespace thinwire::moe
