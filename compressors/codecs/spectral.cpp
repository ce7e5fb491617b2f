#include "thinwire/compressors/codecs/spectral.h"

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/ecsq.h"

namespace thinwire {

CodecPtr make_spectral(const Spec& spec) {
  SpecReader read(spec);
  EcsqOptions options;
  BasisOptions basis;
  const bool has_step = read.has("step"), has_error = read.has("error");
  check(!read.has("as"), "'", spec.str(),
        "': in its basis no other codec's error is known; bits, step and error are goals");
  check(int{read.has("bits")} + int{has_step} + int{has_error} <= 1, "'", spec.str(),
        "': a codec follows one of bits, step and error");
  options.value = read.number("bits", 1, 0.02, 16);
  const double step = read.number("step", 1, 0, 1e30, true);
  const double error = read.number("error", 0.1, 0, 1, true);
  basis.directions = static_cast<int>(read.integer("directions", basis.directions, 1, 64));
  basis.every = static_cast<int>(read.integer("every", basis.every, 1, 1'000'000));
  read.finish();
  if (has_step) options = {.goal = EcsqOptions::Goal::kStep, .value = step};
  if (has_error) options = {.goal = EcsqOptions::Goal::kError, .value = error};
  options.basis = basis;
  return make_step_codec(std::move(options));
}

}  // namespace thinwire
