#include "thinwire/moe/leg_specs.h"

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire::moe {

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
    case 1:
      return {specs[0], specs[0], specs[0], specs[0]};
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
