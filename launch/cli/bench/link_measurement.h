// Measuring the link model of a running job, for `thinwire link` and `thinwire bench`.
#pragma once

#include <string>
#include <vector>

#include "thinwire/comm/link/link_model.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/launch/world.h"

namespace thinwire::launch {

struct LinkMeasurement {
  // Besides the job's own, over which it is measured first.
  std::vector<std::string> more_backends = {};
  std::vector<CodecPtr> codecs = {};
  comm::ProbeOptions probe = {};
};

// The model of a job. With one rank there is no link: only codecs are measured. Collective; every
// rank gets the same model. Throws InvalidArgument for a backend that this job cannot use,
// CommError when a rank is gone.
comm::LinkModel measure_link(const World& world, const LinkMeasurement& measurement);

}  // namespace thinwire::launch
